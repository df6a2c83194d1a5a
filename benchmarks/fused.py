"""Compares the fused executor with blocks: errors, compilation, time of a forward and backward pass.

    python -m benchmarks.fused --num 30

Training architectures, as many of each family. Errors are relative to blocks, in float64 (see
`benchmarks.executor_equality` for why) on 4 images, by a program of the networks' own operations; times in float32 on
64 images, by the program of the whole family. Run it on an idle machine, with another XDG_CACHE_HOME if the programs
are compiled already; takes about 15 minutes on two CPU cores, most of it to compile. Exits with code 1 if an error
exceeds 1e-4.
"""

import functools
import itertools
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array

from benchmarks.executor_equality import Case, make_case
from ghn_jax.deepnets import sampling
from ghn_jax.deepnets.architectures import Architecture
from ghn_jax.deepnets.families import FAMILIES, family_of, instruction_set
from ghn_jax.deepnets.image_sizes import CIFAR_SIZE
from ghn_jax.executor import fused, run
from ghn_jax.executor.compiler_options import options_for
from ghn_jax.executor.instruction_set import InstructionSet, collect
from ghn_jax.executor.layouts import flatten
from ghn_jax.executor.simplify import simplify
from ghn_jax.executor.table import assemble
from ghn_jax.runtime import compilation

_TOLERANCE = 1e-4
_CLASSES = 10
_FEW_IMAGES = (4, CIFAR_SIZE, CIFAR_SIZE, 3)


class Result(NamedTuple):
    """Of one network: relative errors, then seconds of both executors."""

    loss: float
    gradient: float
    fused: float
    blocks: float


def main(
    num: int = 30, batch: int = 64, runs: int = 3, seed: int = 0, families: tuple[int, ...] = FAMILIES
) -> None:
    """Prints a row for each family: means of times, largest errors.

    Args:
      num: architectures.
      batch: images, for the times.
      runs: timed runs of each network; the first one does not count.
      seed: of architectures, parameters and images.
      families: their padded channels.
    """
    print(
        "| channels | networks | operations | compilation, s | fused, s | blocks, s | ratio | loss | gradient |"
    )
    print("|" + "---|" * 9)
    everything: list[Result] = []
    for family, architectures in draw(num // len(families), seed, families).items():
        cases = [
            make_case(a, _FEW_IMAGES[0], np.random.default_rng((seed, i)))
            for i, a in enumerate(architectures)
        ]
        errors = measure_errors(cases)
        instructions = instruction_set(family, (batch, CIFAR_SIZE, CIFAR_SIZE, 3), _CLASSES)
        seconds, times = measure_times(instructions, cases, runs)
        results = [Result(*e, *t) for e, t in zip(errors, times, strict=True)]
        mean, worst = Result(*np.mean(results, 0)), Result(*np.max(results, 0))
        print(
            f"| {family} | {len(results)} | {len(instructions.places)} | {seconds:.0f} | {mean.fused:.2f} "
            f"| {mean.blocks:.2f} | {mean.fused / mean.blocks:.2f} | {worst.loss:.0e} | {worst.gradient:.0e} |",
            flush=True,
        )
        everything += results
    total, worst = Result(*np.sum(everything, 0)), Result(*np.max(everything, 0))
    print(f"fused / blocks, sum over the networks: {total.fused / total.blocks:.2f}")
    if max(worst.loss, worst.gradient) > _TOLERANCE:
        sys.exit(1)


def draw(num: int, seed: int, families: Sequence[int]) -> dict[int, list[Architecture]]:
    """Training architectures, `num` of each family."""
    drawn: dict[int, list[Architecture]] = {family: [] for family in families}
    steps = itertools.count()
    while any(len(architectures) < num for architectures in drawn.values()):
        for arch in sampling.meta_batch(seed, next(steps), 8).architectures:
            if family_of(arch) in drawn and len(drawn[family_of(arch)]) < num:
                drawn[family_of(arch)].append(arch)
    return drawn


def measure_errors(cases: Sequence[Case]) -> list[tuple[float, float]]:
    """Relative errors of loss and gradient (as one vector) of each network."""
    networks = [simplify(case.lowered.program, _FEW_IMAGES) for case in cases]
    with jax.enable_x64(True):
        machine = Machine(collect(networks, _FEW_IMAGES, _CLASSES), cases, np.float64)
        return [machine.errors(case) for case in cases]


def measure_times(
    instructions: InstructionSet, cases: Sequence[Case], runs: int
) -> tuple[float, list[tuple[float, float]]]:
    """Seconds to compile the family's program, and of each network by it and by blocks."""
    machine = Machine(instructions, cases, np.float32)
    return machine.seconds, [machine.times(case, runs) for case in cases]


class Operands(NamedTuple):
    """What both executors are given, besides the network."""

    flat: Array
    images: Array
    labels: Array
    dropout_key: Array


class Machine:
    """A compiled program, with room for some networks.

    Attributes:
      seconds: that compilation took.
    """

    def __init__(self, instructions: InstructionSet, cases: Sequence[Case], dtype: Any):
        self._instructions, self._dtype = instructions, dtype
        needs = [assemble(case.lowered.program, instructions) for case in cases]
        self._flat_size = max(
            *(operation.num_weights for operation in instructions.places),
            *(case.lowered.flat_size for case in cases),
            *(needed.flat_size for needed in needs),
        )
        self._memory = jnp.zeros(max(needed.memory_size for needed in needs), dtype)
        function = functools.partial(fused.loss_and_gradient, instructions)
        operands = self._operands(cases[0])
        traced = jax.jit(function, donate_argnums=0).lower(self._memory, needs[0].table, *operands)
        start = time.perf_counter()
        self._compiled = traced.compile(compiler_options=options_for("fused"))
        self.seconds = time.perf_counter() - start

    def _operands(self, case: Case) -> Operands:
        rng, images = np.random.default_rng(0), self._instructions.images
        return Operands(
            jnp.asarray(flatten(case.lowered.parameters, case.tensors, self._flat_size), self._dtype),
            jnp.asarray(rng.standard_normal(images), self._dtype),
            jnp.asarray(rng.integers(_CLASSES, size=images[0])),
            jax.random.key(0),
        )

    def _run(self, case: Case, operands: Operands) -> run.Outcome:
        table = assemble(case.lowered.program, self._instructions).table
        outcome, self._memory = self._compiled(self._memory, table, *operands)
        return outcome

    def errors(self, case: Case) -> tuple[float, float]:
        operands = self._operands(case)
        ours, theirs = self._run(case, operands), _run_blocks(case, operands)
        distance = jnp.linalg.norm(ours.gradient - theirs.gradient) / jnp.linalg.norm(theirs.gradient)
        return float(abs(ours.loss - theirs.loss) / theirs.loss), float(distance)

    def times(self, case: Case, runs: int) -> tuple[float, float]:
        """Of the fastest run, in turn with blocks."""
        operands, seconds = self._operands(case), []
        for _ in range(runs + 1):
            start = time.perf_counter()
            jax.block_until_ready(self._run(case, operands))
            middle = time.perf_counter()
            jax.block_until_ready(_run_blocks(case, operands))
            seconds.append((middle - start, time.perf_counter() - middle))
        ours, theirs = np.min(seconds[1:], 0)
        return float(ours), float(theirs)


def _run_blocks(case: Case, operands: Operands) -> run.Outcome:
    flat, images, labels, key = operands
    return run.loss_and_gradient(case.lowered.program, flat, images, labels, key)


if __name__ == "__main__":
    compilation.use_persistent_cache()
    tyro.cli(main)
