"""Times single networks, forward and backward, against the public PyTorch code, in turn.

    python -m benchmarks.executor --public CHECKOUT --torch_python PYTHON

CHECKOUT is a copy of github.com/facebookresearch/ppuda, PYTHON an interpreter with torch. Run on an idle machine. Six
networks of different kinds, each the first of the split test with a certain operation; 32 channels, 64 images.
"""

import dataclasses
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.public import run as run_public
from ghn_jax.deepnets import sampling
from ghn_jax.deepnets.architectures import Architecture
from ghn_jax.deepnets.lowering import lower
from ghn_jax.executor import run
from ghn_jax.runtime import compilation

KINDS = ("sep_conv_5x5", "dil_conv_3x3", "conv_3x3", "conv_7x1_1x7", "msa", "cse")
_BATCH = 64


def main(public: pathlib.Path | None = None, torch_python: str = "python", runs: int = 5, rounds: int = 2):
    """Prints milliseconds of the fastest run of each network, and the ratio; without `public`, of this project alone.

    Args:
      public: a copy of the public code.
      torch_python: an interpreter with PyTorch.
      runs: timed runs of each network in a round.
      rounds: times each side runs all networks, in turn.
    """
    compilation.use_persistent_cache()
    architectures = {op: _first_with(op) for op in KINDS}
    arguments = [arch.to_dict() for arch in architectures.values()]
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append([_seconds(arch, runs) for arch in architectures.values()])
        if public is not None:
            theirs.append(
                run_public(
                    "networks.py", public, torch_python, networks=arguments, batch_size=_BATCH, runs=runs
                )
            )
    own, other = np.min(ours, 0) * 1e3, np.min(theirs, 0) * 1e3 if theirs else np.full(len(KINDS), np.nan)
    print("| with | parameters | ghn_jax, ms | public, ms | ratio |\n|" + "---|" * 5)
    for (op, arch), mine, yours in zip(architectures.items(), own, other, strict=True):
        print(f"| {op} | {lower(arch).num_parameters:,} | {mine:.0f} | {yours:.0f} | {mine / yours:.2f} |")
    print(f"| sum | | {own.sum():.0f} | {other.sum():.0f} | {own.sum() / other.sum():.2f} |")


def _first_with(op: str) -> Architecture:
    """The first test architecture with an operation, and no other of the kinds if possible, at 32 channels."""
    drawn = [sampling.sample("test", index) for index in range(100)]
    having = [arch for arch in drawn if op in arch.genotype.ops]
    others = [sum(kind in arch.genotype.ops for kind in KINDS) for arch in having]
    return dataclasses.replace(having[int(np.argmin(others))], C=32)


def _seconds(arch: Architecture, runs: int) -> float:
    """Of the fastest forward and backward pass; the first one, which compiles, does not count."""
    network, rng = lower(arch), np.random.default_rng(0)
    flat = jnp.asarray(0.05 * rng.standard_normal(network.flat_size), jnp.float32)
    images = jnp.asarray(rng.standard_normal((_BATCH, 32, 32, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, _BATCH))
    fastest = np.inf
    for number in range(runs + 1):
        start = time.perf_counter()
        jax.block_until_ready(run.loss_and_gradient(network.program, flat, images, labels))
        fastest = min(fastest, time.perf_counter() - start) if number else np.inf
    return float(fastest)


if __name__ == "__main__":
    tyro.cli(main)
