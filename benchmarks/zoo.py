"""Predicts third-party models, as their packages have them, and prints how much of each is predicted.

    python -m pip install flaxmodels jax-resnet dm-haiku equimo jaxnn torchvision keras h5py
    KERAS_BACKEND=jax python -m benchmarks.zoo

A package that is not installed is skipped. No weights are downloaded, and the GHN is a fresh one: what is measured is
whether a graph is found and which parameters are predicted, not how well.
"""

import importlib.util
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from ghn_jax import Function, TrainedGHN, predict_parameters
from ghn_jax.models.config import preset
from ghn_jax.models.ghn import init_params

IMAGES = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
CHANNELS_FIRST = jax.ShapeDtypeStruct((1, 3, 224, 224), jnp.float32)


class Entry(NamedTuple):
    """A model, and images as it takes them."""

    package: str
    name: str
    make: Callable[[], Any]
    images: jax.ShapeDtypeStruct = IMAGES


def main(only: str = "") -> None:
    """Prints a Markdown table; exits with 1 if no graph is found for some model.

    Args:
      only: models whose package or name contain this.
    """
    config = preset("ghn2", 1000, 224)
    ghn = TrainedGHN(config, init_params(config, jax.random.key(0)), {})
    print("| package | model | parameters | predicted | nodes | why not all |\n|---|---|---|---|---|---|")
    failed = False
    for entry in entries():
        if only not in f"{entry.package} {entry.name}":
            continue
        start = time.monotonic()
        try:
            row = _row(entry, ghn)
        except Exception as error:  # a table of all models is wanted, whatever one of them raises
            failed, row = True, f"fails | | | {type(error).__name__}: {error}"
        print(f"| {entry.package} | {entry.name} | {row} |", flush=True)
        print(f"{entry.name}: {time.monotonic() - start:.1f} s", file=sys.stderr)
    if failed:
        sys.exit(1)


def _row(entry: Entry, ghn: TrainedGHN) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        variables, report = predict_parameters(entry.make(), entry.images, ghn)
    params = variables["params"] if isinstance(variables, dict) and "params" in variables else variables
    params = nnx.state(params, nnx.Param) if isinstance(params, nnx.Module) else params
    total = sum(np.size(leaf) for leaf in jax.tree.leaves(params) if hasattr(leaf, "dtype"))
    reasons = sorted(set(report.unassigned.values()))
    share = 100.0 * report.parameters / total
    return f"{total:,} | {share:.2f} % | {report.graph.num_nodes} | {'; '.join(reasons)}"


def entries() -> Iterator[Entry]:
    """The models of the packages that are installed."""
    for package, models in _ZOO.items():
        if importlib.util.find_spec(package):
            yield from models()


def _flaxmodels() -> Iterator[Entry]:
    import flaxmodels

    for name in ("ResNet18", "ResNet50", "VGG16"):
        cls = getattr(flaxmodels, name)
        extra = {} if name == "VGG16" else {"normalize": False}
        yield Entry(
            "flaxmodels (Linen)",
            name,
            lambda cls=cls, extra=extra: cls(output="logits", pretrained=None, **extra),
        )


def _jax_resnet() -> Iterator[Entry]:
    import jax_resnet

    for name in ("ResNet18", "ResNet50", "ResNetD50", "ResNeXt50", "ResNeSt50Fast"):
        yield Entry("jax-resnet (Linen)", name, lambda name=name: getattr(jax_resnet, name)(n_classes=1000))


def _haiku() -> Iterator[Entry]:
    import haiku as hk

    for name in ("ResNet18", "ResNet50", "MobileNetV1"):

        def make(name: str = name) -> Function:
            def forward(x, is_training=False):
                return getattr(hk.nets, name)(num_classes=1000)(x, is_training)

            net = hk.transform_with_state(forward)
            params, state = jax.eval_shape(
                lambda key, x: net.init(key, x, is_training=True), jax.random.key(0), IMAGES
            )
            state = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), state)
            return Function(lambda p, x: net.apply(p, state, None, x)[0], params)

        yield Entry("dm-haiku", name, make)


def _keras() -> Iterator[Entry]:
    import keras

    for name in (
        "ResNet50V2",
        "DenseNet121",
        "MobileNetV2",
        "EfficientNetB0",
        "VGG16",
        "Xception",
        "ConvNeXtTiny",
    ):

        def make(name: str = name) -> Function:
            model = getattr(keras.applications, name)(weights=None, classifier_activation=None)
            own = [v.value for v in model.trainable_variables]
            rest = [v.value for v in model.non_trainable_variables]
            return Function(lambda p, x: model.stateless_call(p, rest, x, training=False)[0], own)

        yield Entry("keras (JAX backend)", name, make)


def _equinox() -> Iterator[Entry]:
    import equinox as eqx
    from equimo.models import convnext

    for name in ("convnext_t", "convnext_s"):

        def make(name: str = name) -> Function:
            model = getattr(convnext, name)(num_classes=1000, key=jax.random.key(0))
            params, static = eqx.partition(model, eqx.is_inexact_array)

            def apply(params, x):
                whole = eqx.nn.inference_mode(eqx.combine(params, static))
                return jax.vmap(lambda x: whole(x, key=jax.random.key(0)))(x)

            return Function(apply, params)

        yield Entry("equimo (Equinox)", name, make, CHANNELS_FIRST)


def _jaxnn() -> Iterator[Entry]:
    import jaxnn

    for name in ("resnet18", "resnet50", "vit_small_patch16_224"):
        yield Entry("jaxnn (NNX)", name, lambda name=name: jaxnn.create_model(name, rngs=nnx.Rngs(0)))


_ZOO = {
    "flaxmodels": _flaxmodels,
    "jax_resnet": _jax_resnet,
    "haiku": _haiku,
    "keras": _keras,
    "equimo": _equinox,
    "jaxnn": _jaxnn,
}

if __name__ == "__main__":
    tyro.cli(main)
