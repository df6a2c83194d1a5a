"""Runs random architectures by the executor and as plain Flax modules: are loss and gradient the same?

    python -m benchmarks.executor_equality --num 50

It compares in float64. In float32, rounding alone makes two right implementations differ: it puts values that
are nearly zero on the other side of a ReLU, or another pixel first in a max-pool, where the gradient jumps;
and deep networks with random weights amplify it. How far float32 takes the loss is printed beside, for both.

Exits with code 1 if a relative error in float64 exceeds 1e-4.
Takes about 10 minutes on two CPU cores, to compile every operation once for each of its shapes.
"""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, Float, Int

from ghn_jax.deepnets.architectures import Architecture
from ghn_jax.deepnets.image_sizes import CIFAR_SIZE
from ghn_jax.deepnets.lowering import lower
from ghn_jax.deepnets.networks import CellNetwork, from_params, to_params
from ghn_jax.deepnets.sampling import SPLITS, sample
from ghn_jax.executor import run
from ghn_jax.executor.layouts import Parameter, flatten, unflatten
from ghn_jax.executor.program import Lowered

Tensors = Mapping[str, np.ndarray]

_TOLERANCE = 1e-4
_CLASSES = 10
_NARROW = 32


class Case(NamedTuple):
    """A network, its parameters in PyTorch's layout, and a batch."""

    arch: Architecture
    lowered: Lowered
    tensors: Tensors
    images: Float[np.ndarray, "batch height width 3"]
    labels: Int[np.ndarray, " batch"]


class Errors(NamedTuple):
    """Relative errors: of the executor, then of float32 itself in the executor and in the plain module."""

    loss: float
    gradient: float
    executor_rounding: float
    plain_rounding: float


def main(num: int = 50, batch: int = 4, seed: int = 0) -> None:
    """Compares `num` architectures, spread over the splits, on `batch` random images."""
    errors: dict[str, list[Errors]] = {}
    for number, (split, arch) in enumerate(architectures(num, seed)):
        case = make_case(arch, batch, np.random.default_rng((seed, number)))
        errors.setdefault(split, []).append(compare(case))
    print("worst relative errors               float64             float32, loss")
    print("split     cases     loss  gradient  executor     plain")
    for split, cases in errors.items():
        worst = Errors(*map(max, zip(*cases, strict=True)))
        print(f"{split:8}  {len(cases):5}  " + "  ".join(f"{error:7.1e}" for error in worst))
    if any(max(e.loss, e.gradient) > _TOLERANCE for cases in errors.values() for e in cases):
        sys.exit(1)


def architectures(num: int, seed: int) -> Iterator[tuple[str, Architecture]]:
    """Splits and architectures: one in 25 is `wide`, others narrow, since new widths mean compiling."""
    narrow = [split for split in SPLITS if split != "wide"]
    for number in range(num):
        if number % 25 == 24:
            yield "wide", sample("wide", number // 25, seed)
        else:
            split, index = narrow[number % len(narrow)], number // len(narrow)
            arch = sample(split, index, seed)
            yield split, arch if number % 10 == 0 else dataclasses.replace(arch, C=_NARROW)


def make_case(arch: Architecture, batch: int, rng: np.random.Generator) -> Case:
    """Random parameters and images."""
    lowered = lower(arch, _CLASSES)
    tensors = {p.name: _draw(p, rng) for p in lowered.parameters}
    images = rng.standard_normal((batch, CIFAR_SIZE, CIFAR_SIZE, 3), np.float32)
    return Case(arch, lowered, tensors, images, rng.integers(_CLASSES, size=batch))


def _draw(parameter: Parameter, rng: np.random.Generator) -> np.ndarray:
    """He's normal distribution for kernels, small numbers for biases, scales near 1."""
    normal = rng.standard_normal(parameter.shape, np.float32)
    if len(parameter.shape) == 1:
        return np.float32(0.1) * normal + np.float32(parameter.name.endswith("weight"))
    return normal * np.float32(np.sqrt(2 / np.prod(parameter.shape[1:])))


def compare(case: Case) -> Errors:
    """Errors relative to the plain module in float64.

    A tensor's gradient is measured against its own norm, but at least 1e-6 of the largest one: what is
    smaller may be zero but for rounding.
    """
    with jax.enable_x64(True):
        true_loss, true_gradient = plain_loss_and_gradient(case)
        loss, gradient = executor_loss_and_gradient(case)
    norms = {name: float(np.linalg.norm(g)) for name, g in true_gradient.items()}
    floor = 1e-6 * max(norms.values())
    distances = {name: float(np.linalg.norm(gradient[name] - g)) for name, g in true_gradient.items()}
    return Errors(
        abs(loss - true_loss) / true_loss,
        max(distances[name] / max(norms[name], floor) for name in norms),
        abs(executor_loss(case) - true_loss) / true_loss,
        abs(plain_loss(case) - true_loss) / true_loss,
    )


def plain_loss_and_gradient(case: Case) -> tuple[float, Tensors]:
    network, images = CellNetwork(case.arch, _CLASSES), jnp.asarray(case.images, jnp.float64)

    def loss_of(params: Any) -> Array:
        return _cross_entropy(jnp.asarray(network.apply({"params": params}, images)), case.labels)

    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), to_params(case.tensors))
    loss, gradient = jax.value_and_grad(loss_of)(params)
    return float(loss), from_params(gradient)


def executor_loss_and_gradient(case: Case) -> tuple[float, Tensors]:
    program, images = case.lowered.program, jnp.asarray(case.images, jnp.float64)
    flat = jnp.asarray(_flat(case), jnp.float64)
    outcome = run.loss_and_gradient(program, flat, images, jnp.asarray(case.labels))
    return float(outcome.loss), unflatten(case.lowered.parameters, np.asarray(outcome.gradient))


def plain_loss(case: Case) -> float:
    logits = CellNetwork(case.arch, _CLASSES).apply({"params": to_params(case.tensors)}, case.images)
    return float(_cross_entropy(jnp.asarray(logits), case.labels))


def executor_loss(case: Case) -> float:
    logits = run.logits(case.lowered.program, jnp.asarray(_flat(case)), jnp.asarray(case.images))
    return float(_cross_entropy(logits, case.labels))


def _flat(case: Case) -> np.ndarray:
    return flatten(case.lowered.parameters, case.tensors, case.lowered.flat_size)


def _cross_entropy(logits: Array, labels: np.ndarray) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


if __name__ == "__main__":
    tyro.cli(main)
