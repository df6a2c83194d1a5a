"""Measures the memory of a meta-training step, and how it grows with the number of architectures in it.

    python -m benchmarks.memory

Each meta-batch size in a process of its own, at 64 images of 32 pixels; all have the heaviest architecture of the first
training step. Peaks of resident memory: after the imports, after compiling (or loading from the cache) all that the
step needs, and after the step.
"""

import json
import subprocess
import sys

import tyro

_STEP = """
import json, resource, sys
import jax
from benchmarks.meta_step import Ours
from ghn_jax.deepnets import sampling
from ghn_jax.deepnets.lowering import lower
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
size = int(sys.argv[1])
drawn = sampling.meta_batch(0, 0, 8).architectures
heaviest = max(drawn, key=lambda arch: lower(arch).num_parameters)
batch = (heaviest, *(arch for arch in drawn if arch is not heaviest))[:size]
before = peak()
ours = Ours([batch])
compiled = peak()
ours.run()
print(json.dumps(dict(before=before, compiled=compiled, after=peak())))
"""


def main(sizes: tuple[int, ...] = (1, 2, 4, 8)) -> None:
    """Prints a table, in MiB.

    Args:
      sizes: meta-batch sizes.
    """
    print("| architectures | imported | all compiled | after a step |\n|" + "---|" * 4)
    for size in sizes:
        command = [sys.executable, "-c", _STEP, str(size)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {size} | {figures['before']:.0f} | {figures['compiled']:.0f} | {figures['after']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    tyro.cli(main)
