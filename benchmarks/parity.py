"""Compares this project with figures that the public PyTorch code computed, on deterministic weights.

    python -m benchmarks.parity --golden DIR

DIR holds `deepnets_cifar10.json.gz` and `deepnets_imagenet.json.gz` (graphs, parameter counts, predicted
parameters, logits), `torchvision.json.gz` (the same of named models, through their jaxpr, without logits),
`ghn3_torchvision.json.gz` and `ghn3_small_torchvision.json.gz` (the same with GHN-3) and `train_steps.json`
(meta-training steps); what is missing is skipped. Prints, per file, the number of cases and the worst relative error of
each quantity, and exits with 1 if one is above its tolerance.
"""

import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.golden import Errors, golden_params, load, logits_error, same_graph, tensors_error
from benchmarks.golden import fill as fill
from benchmarks.parity_targets import SIZES, ghn3_errors, target_errors
from ghn_jax.deepnets.architectures import Architecture
from ghn_jax.deepnets.lowering import lower
from ghn_jax.deepnets.networks import CellNetwork, to_params
from ghn_jax.evaluation.accuracy import predict_flat
from ghn_jax.executor import run
from ghn_jax.executor.layouts import unflatten
from ghn_jax.models.config import GHNConfig, preset
from ghn_jax.models.templates import deepnets_templates
from ghn_jax.pretrained import public_names
from ghn_jax.training import meta, prepare
from ghn_jax.training.pmapped import replicate
from ghn_jax.training.recipes import recipe

TOLERANCE = {
    "graphs": 0.0,
    "parameter counts": 0.0,
    "predicted parameters": 1e-4,
    "logits, executor": 1e-3,
    "logits, plain module": 1e-3,
    "loss, step 1": 1e-4,
    "loss, step 2": 5e-3,
    "gradient norms, step 1": 5e-3,
    "gradient norms, in float64": 1e-3,
}
"""Largest relative error allowed of each quantity (of the first two: share of cases that differ)."""


def main(golden: pathlib.Path, limit: int | None = None) -> None:
    """Checks a folder.

    Args:
      golden: the folder.
      limit: only the first so many networks of each file.
    """
    checks = {
        "deepnets_cifar10.json.gz": lambda path: network_errors(load(path)[:limit], "cifar10"),
        "deepnets_imagenet.json.gz": lambda path: network_errors(load(path)[:limit], "imagenet"),
        "torchvision.json.gz": lambda path: target_errors(load(path)[:limit]),
        "ghn3_torchvision.json.gz": lambda path: ghn3_errors(load(path), limit),
        "ghn3_small_torchvision.json.gz": lambda path: ghn3_errors(load(path), limit),
        "train_steps.json": lambda path: training_errors(
            load(path), load(path.with_name("train_steps_nets.json"))
        ),
    }
    failed = False
    for name, check in checks.items():
        path = golden / name
        if not path.exists():
            print(f"{name}: not there, skipped")
            continue
        print(f"{name}:", flush=True)
        for quantity, errors in check(path).items():
            worst, tolerance = max(errors), TOLERANCE[quantity]
            verdict = "ok" if worst <= tolerance else "ABOVE TOLERANCE"
            failed |= not worst <= tolerance
            print(
                f"  {quantity:26} {len(errors):4} cases, worst {worst:.1e} (at most {tolerance:.0e}) {verdict}"
            )
    if failed:
        sys.exit(1)


# -- networks ----------------------------------------


def network_errors(records: list[dict[str, Any]], dataset: str) -> Errors:
    """Errors of graphs, counts, predicted parameters and logits, over networks and GHNs."""
    num_classes, image_size = SIZES[dataset]
    errors: Errors = {}

    def note(quantity: str, error: float) -> None:
        errors.setdefault(quantity, []).append(error)

    images = golden_images(8 if dataset == "cifar10" else 2, image_size)
    for record in records:
        arch = Architecture.from_dict(record["args"])
        network = lower(arch, num_classes, image_size)
        note("graphs", float(not same_graph(network.graph, record["graph"])))
        # reachable parameters in one file, all of them in the other
        note(
            "parameter counts", float(record["num_params"] not in (network.capacity, network.num_parameters))
        )
        for ghn, expected in record["predict"].items():
            config = preset(ghn.split("_")[0], num_classes, image_size)
            templates = deepnets_templates(config, image_size)
            flat = predict_flat(config, golden_params(config), network, templates)
            tensors = unflatten(network.parameters, np.asarray(flat))
            note("predicted parameters", tensors_error(tensors, expected["params"]))
            note(
                "logits, executor",
                logits_error(run.logits(network.program, flat, images), expected["logits"]),
            )
            plain = CellNetwork(arch, num_classes, image_size).apply({"params": to_params(tensors)}, images)
            note("logits, plain module", logits_error(cast(jax.Array, plain), expected["logits"]))
    return errors


def golden_images(count: int, size: int) -> jax.Array:
    """The images of the golden logits, NHWC."""
    images = np.random.RandomState(0).standard_normal((count, 3, size, size))
    return jnp.asarray(images.astype(np.float32).transpose(0, 2, 3, 1))


# -- training steps ----------------------------------------


def training_errors(records: list[dict[str, Any]], nets: list[list[Any]]) -> Errors:
    """Errors of the losses of the first two steps, and of the gradient norms of the first, twice.

    Float32 rounds predicted parameters by 2e-7; the ReLUs which that switches move a network's gradient by up to 1e-2.
    In float64 only the figures are rounded.
    """
    errors: Errors = {}
    for record in records:
        config = preset(record["config"].split("_")[0])
        for number, (loss, norms, step) in enumerate(
            training_steps(config, record["steps"][:2], nets), start=1
        ):
            errors.setdefault(f"loss, step {number}", []).append(abs(loss - step["loss"]) / step["loss"])
            if number == 1:
                errors.setdefault("gradient norms, step 1", []).append(_norms_error(norms, step))
        with jax.enable_x64(True):
            _, norms, step = next(training_steps(config, record["steps"][:1], nets, np.float64))
        errors.setdefault("gradient norms, in float64", []).append(_norms_error(norms, step))
    return errors


def _norms_error(norms: Mapping[str, float], step: Mapping[str, Any]) -> float:
    expected = step["grad_norm_after_clip"]
    scale = max(expected.values())
    # a norm far below the largest is all rounding: measure it against the largest
    return max(abs(norms[n] - expected[n]) / max(expected[n], 1e-3 * scale) for n in expected)


def training_steps(
    config: GHNConfig, steps: list[dict[str, Any]], nets: list[list[Any]], dtype: Any = np.float32
) -> Iterator[tuple[float, dict[str, float], dict[str, Any]]]:
    """Takes golden training steps; yields the loss and the norm of each clipped gradient, by public name."""
    templates = deepnets_templates(config, 32)
    optimizer = recipe("published").make_optimizer(num_steps=1000)
    params = jax.tree.map(lambda weight: jnp.asarray(weight, dtype), golden_params(config))
    zero = jnp.zeros((), jnp.int32)
    devices = jax.local_devices()[:1]
    state = replicate(meta.TrainState(params, optimizer.init(params), zero, zero), devices)
    ghn = meta.make_ghn_step(config, templates, optimizer, devices)
    for step in steps:
        networks = tuple(lower(Architecture.from_dict(nets[i][1])) for i in step["nets"])
        rng = np.random.RandomState(step["images_seed"])
        images = rng.standard_normal((step["batch"], 3, 32, 32)).astype(np.float32).transpose(0, 2, 3, 1)
        images = jnp.asarray(images, dtype)
        labels = jnp.asarray(rng.randint(0, config.num_classes, step["batch"]))
        batch = prepare.prepare(networks, config, templates, num_devices=1)
        before = state
        state, metrics = meta.meta_step(ghn, state, batch, [images[None]], [labels[None]], dropout_key=None)
        yield float(metrics.loss[0]), _clipped_norms(config, before, state), step


def _clipped_norms(config: GHNConfig, before: meta.TrainState, after: meta.TrainState) -> dict[str, float]:
    """Norms of the clipped gradient, read off Adam's first moment: m' = 0.9 m + 0.1 (gradient + decay * weight)."""

    def moments(state: meta.TrainState) -> Any:
        return cast(Any, state.opt_state)[2][0].mu  # chain: clip, weight decay, Adam

    gradient = jax.tree.map(
        lambda new, old, weight: np.asarray((new - 0.9 * old) / 0.1 - 1e-5 * weight)[0],
        moments(after),
        moments(before),
        before.params,
    )
    return {n: float(np.linalg.norm(t)) for n, t in public_names.to_state_dict(config, gradient).items()}


if __name__ == "__main__":
    tyro.cli(main)
