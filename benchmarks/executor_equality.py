"""Runs random architectures with the executor and as plain Flax modules: are loss and gradient the same?

    python -m benchmarks.executor_equality --num 50

Takes about DURATION on two CPU cores, since nothing is jitted on the plain side and each operation is compiled once
for each of its shapes. Exits with code 1 if a relative error exceeds 1e-4.
"""

import dataclasses
import itertools
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from ghn_jax.architectures import Architecture
from ghn_jax.executor import run
from ghn_jax.layouts import Parameter, flatten, unflatten
from ghn_jax.lowering import CIFAR_SIZE, lower
from ghn_jax.networks import CellNetwork, from_params, to_params
from ghn_jax.sampling import CHANNELS, SPLITS, sample

TOLERANCE = 1e-4
_LABELS = 10


class Errors(NamedTuple):
    """Relative errors of the executor."""

    loss: float
    gradient: float


def main(num: int = 50, batch: int = 4, seed: int = 0) -> None:
    """Compares `num` architectures, spread over the splits, on `batch` random images."""
    worst: dict[str, list[Errors]] = {}
    for case, (split, arch) in enumerate(cases(num, seed)):
        worst.setdefault(split, []).append(compare(arch, batch, np.random.default_rng((seed, case))))
    print(f"{'split':8} {'cases':>5} {'loss':>9} {'gradient':>9}")
    for split, errors in worst.items():
        loss, gradient = (max(column) for column in zip(*errors, strict=True))
        print(f"{split:8} {len(errors):5} {loss:9.1e} {gradient:9.1e}")
    if max(itertools.chain.from_iterable(itertools.chain.from_iterable(worst.values()))) > TOLERANCE:
        sys.exit(1)
