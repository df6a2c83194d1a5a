"""Counts the blocks that meta-training meets, step by step: all that it will ever have to compile.

    python -m benchmarks.distinct_blocks

Nothing is compiled or run. A block is compiled once, forward and backward; what else a run compiles are the GHN's
functions, once per size of graphs.
"""

import tyro

from ghn_jax.deepnets import sampling
from ghn_jax.deepnets.image_sizes import CIFAR_SIZE
from ghn_jax.executor.warm_up import Signature, signatures


def main(steps: int = 2000, meta_batch_size: int = 8, batch: int = 64, seed: int = 0) -> None:
    """Prints a row at steps 1, 2, 5, 10, 20, 50, ... and at the last one.

    Args:
      steps: of meta-training.
      meta_batch_size: architectures in each.
      batch: images.
      seed: that of `train.py`.
    """
    marks = {digit * 10**power for digit in (1, 2, 5) for power in range(9)} | {steps}
    seen: set[Signature] = set()
    run, first_run = 0, 0
    print("| step | architectures | blocks so far | new among those run since the last row |\n|" + "---|" * 4)
    for step in range(steps):
        for network in sampling.meta_batch(seed, step, meta_batch_size).networks:
            found = signatures(network.program, (batch, CIFAR_SIZE, CIFAR_SIZE, 3))
            run, first_run = run + len(found), first_run + len(set(found) - seen)
            seen.update(found)
        if step + 1 in marks:
            share = 100 * first_run / run
            print(
                f"| {step + 1:,} | {(step + 1) * meta_batch_size:,} | {len(seen)} | {share:.2g} % |",
                flush=True,
            )
            run, first_run = 0, 0


if __name__ == "__main__":
    tyro.cli(main)
