import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ghn_jax import apply_by_batch, target
from ghn_jax.deepnets.architectures import NAMED, Architecture, Edge, Genotype
from ghn_jax.deepnets.lowering import lower, lower_resnet50
from ghn_jax.deepnets.networks import CellNetwork, from_params, to_params
from ghn_jax.deepnets.networks.cells import needed_states
from ghn_jax.deepnets.sampling import SPLITS, sample
from ghn_jax.executor import run
from ghn_jax.executor.layouts import flatten, unflatten
from ghn_jax.executor.program import Lowered

BATCH, LABELS = 4, 10


def network(
    normal: list[Edge], reduce: list[Edge], concat: tuple[int, ...] = (2,), C: int = 16, **arguments
) -> Architecture:
    """A normal cell, then a reduction cell."""
    genotype = Genotype(tuple(normal), concat, tuple(reduce), concat)
    return Architecture(genotype, n_cells=2, C=C, **arguments)


SMALL = {
    "convolutions, zeros in a concatenation": network(
        [("conv_3x3", 0), ("sep_conv_3x3", 1), ("none", 0), ("none", 1)],
        [("skip_connect", 0), ("conv_7x1_1x7", 1), ("dil_conv_3x3", 2), ("none", 2)],
        concat=(2, 3),
        ks=5,
    ),
    "attention": network(
        [("msa", 0), ("skip_connect", 1)], [("msa", 1), ("avg_pool_3x3", 0)], C=32, fc_layers=2, fc_dim=64
    ),
    "gates and pools, no batch norm, flattened": network(
        [("max_pool_3x3", 0), ("conv_1x1", 1)],
        [("cse", 1), ("avg_pool_3x3", 0)],
        stem_pool=True,
        norm=False,
        glob_avg=False,
        C=80,  # padded in the executor
    ),
    "inputs as they are": network(
        [("skip_connect", 0), ("conv_1x1", 1)],
        [("max_pool_3x3", 0), ("dil_conv_5x5", 1)],
        stem_type=1,
        preproc=False,
        C_mult=1,
    ),
}


def random_tensors(lowered: Lowered, seed: int = 0) -> dict[str, np.ndarray]:
    """Normal kernels that keep the variance, and vectors around 1, by public name."""
    rng = np.random.default_rng(seed)
    normal = {p.name: rng.standard_normal(p.shape, np.float32) for p in lowered.parameters}
    return {
        name: 1 + x / 10 if x.ndim == 1 else x * np.float32(np.sqrt(2 / np.prod(x.shape[1:])))
        for name, x in normal.items()
    }


def random_images(size: int = 32) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((BATCH, size, size, 3), np.float32)


def parameter_shapes(module: nn.Module, image_size: int = 32) -> dict[str, tuple[int, ...]]:
    images = jax.ShapeDtypeStruct((BATCH, image_size, image_size, 3), np.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    tensors = from_params(jax.tree.map(lambda x: np.broadcast_to(0, x.shape), params))
    return {name: tensor.shape for name, tensor in tensors.items()}


def logits_of(module: CellNetwork, tensors: dict[str, np.ndarray], images, **arguments) -> np.ndarray:
    apply = jax.jit(module.apply, static_argnames="train")
    return np.asarray(apply({"params": to_params(tensors)}, images, **arguments))


def executor_logits(lowered: Lowered, tensors: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    flat = flatten(lowered.parameters, tensors, lowered.flat_size)
    return np.asarray(run.logits(lowered.program, jnp.asarray(flat), jnp.asarray(images)))


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float, name: str = "") -> None:
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale, err_msg=name)


def lowered_shapes(lowered: Lowered) -> dict[str, tuple[int, ...]]:
    return {p.name: p.shape for p in lowered.parameters}


@pytest.mark.parametrize(
    ("split", "image_size"),
    [
        *((split, 32) for split in SPLITS),
        ("val", 224),
        ("search", 224),
        ("val", 16),
        ("val", 96),
        ("test", 128),
    ],
)
def test_parameters_of_random_architectures(split, image_size):
    arch = sample(split, 0, image_size=image_size)
    shapes = parameter_shapes(CellNetwork(arch, LABELS, image_size), image_size)
    assert shapes == lowered_shapes(lower(arch, LABELS, image_size))


@pytest.mark.parametrize("name", ["darts", "vit"])
def test_parameters_of_named_architectures(name):
    assert parameter_shapes(CellNetwork(NAMED[name])) == lowered_shapes(lower(NAMED[name]))


@pytest.mark.parametrize("image_size", [32, 64, 224])
def test_parameters_of_resnet50(image_size):
    shapes = parameter_shapes(target("resnet50", LABELS, 32 if image_size == 32 else 224), image_size)
    assert shapes == lowered_shapes(lower_resnet50(LABELS, image_size))
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)


@pytest.mark.parametrize("name", SMALL)
def test_parameters_survive_the_round_trip(name):
    tensors = random_tensors(lower(SMALL[name]))
    again = from_params(to_params(tensors))
    assert again.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(again[key], tensor)


@pytest.mark.parametrize("name", SMALL)
def test_logits_equal_those_of_the_executor(name):
    lowered, images = lower(SMALL[name]), random_images()
    tensors = random_tensors(lowered)
    logits = logits_of(CellNetwork(SMALL[name]), tensors, images)
    assert_close(logits, executor_logits(lowered, tensors, images), 1e-4)


@pytest.mark.parametrize(
    ("name", "image_size"), [("attention", 64), ("inputs as they are", 96)], ids=["64", "96"]
)
def test_logits_equal_those_of_the_executor_at_other_sizes(name, image_size):
    lowered, images = lower(SMALL[name], LABELS, image_size), random_images(image_size)
    tensors = random_tensors(lowered)
    logits = logits_of(CellNetwork(SMALL[name], LABELS, image_size), tensors, images)
    assert_close(logits, executor_logits(lowered, tensors, images), 1e-4)


def test_resnet50_logits_equal_those_of_the_executor():
    lowered, images = lower_resnet50(), random_images()
    tensors = random_tensors(lowered)
    model = target("resnet50", LABELS, 32)
    state = jax.eval_shape(model.init, jax.random.key(0), images)["batch_stats"]
    variables = {"params": to_params(tensors), "batch_stats": jax.tree.map(jnp.zeros_like, state)}
    logits = jax.jit(lambda variables, images: apply_by_batch(model, variables, images))(variables, images)
    assert_close(np.asarray(logits), executor_logits(lowered, tensors, images), 1e-4)


@pytest.mark.parametrize("name", list(SMALL)[:2])
def test_gradients_equal_those_of_the_executor(name):
    # in float64: rounding can move values across the kink of a ReLU, where the gradient jumps
    lowered, labels = lower(SMALL[name]), np.arange(BATCH)
    tensors = random_tensors(lowered)
    with jax.enable_x64(True):
        images = jnp.asarray(random_images(), jnp.float64)

        def loss_of(params):
            logits = jnp.asarray(CellNetwork(SMALL[name]).apply({"params": params}, images))
            return -jax.nn.log_softmax(logits)[jnp.arange(BATCH), labels].mean()

        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), to_params(tensors))
        loss, gradient = jax.jit(jax.value_and_grad(loss_of))(params)
        flat = jnp.asarray(flatten(lowered.parameters, tensors, lowered.flat_size), jnp.float64)
        outcome = run.loss_and_gradient(lowered.program, flat, images, jnp.asarray(labels))
    np.testing.assert_allclose(outcome.loss, loss, rtol=1e-9)
    by_name = unflatten(lowered.parameters, np.asarray(outcome.gradient))
    for key, expected in from_params(gradient).items():
        assert_close(by_name[key], expected, 1e-5, key)


def test_dropout_in_training_only():
    module, images = CellNetwork(SMALL["attention"]), random_images()
    tensors = random_tensors(lower(module.arch))
    keys = (jax.random.key(seed) for seed in (0, 0, 1))
    first, same, other = (
        logits_of(module, tensors, images, train=True, rngs={"dropout": key}) for key in keys
    )
    np.testing.assert_array_equal(first, same)
    assert not np.allclose(first, other)
    assert not np.allclose(first, logits_of(module, tensors, images))


def test_what_reaches_no_output_is_left_out():
    # the output is state 3, which reads the second input only
    edges: list[Edge] = [("conv_1x1", 0), ("conv_1x1", 0), ("conv_3x3", 1), ("none", 2)]
    arch = network(edges, edges, concat=(3,))
    assert needed_states(arch) == [frozenset({1, 3}), frozenset({1, 3})]
    cell = {name for name in parameter_shapes(CellNetwork(arch)) if name.startswith("cells.0.")}
    assert {name.split(".op.")[0] for name in cell} == {"cells.0.preprocess1", "cells.0._ops.2"}


def test_errors_name_the_argument():
    small = next(iter(SMALL.values()))
    cut_off = network([("conv_1x1", 0), ("none", 1)], [("none", 0), ("none", 1)])
    with pytest.raises(ValueError, match="`image_size` \\(=50\\)"):
        parameter_shapes(CellNetwork(small, LABELS, 50))
    with pytest.raises(ValueError, match="`images` of shape"):
        CellNetwork(small).init(jax.random.key(0), jnp.zeros((BATCH, 224, 224, 3)))
    with pytest.raises(ValueError, match="replace some 'none'"):
        parameter_shapes(CellNetwork(cut_off))
    with pytest.raises(ValueError, match=r"stem\.running_mean"):
        to_params({"stem.running_mean": np.zeros(3)})
