"""Measures meta-training on the device at hand: both executors, precisions, and networks at a time.

    python -m benchmarks.device --configurations blocks:float32:1 blocks:bfloat16:4 fused:float32:1

The steps of `train.py` on random images, from meta-batches to updated weights. A row for each configuration, as soon as
it is known: seconds until everything is compiled (with an empty cache; `--steps` meta-batches) and how many programs
that is, then architectures a second once nothing is left to compile. With `--batch_size=1` nearly all of that is Python
starting blocks. Float32 on a GPU means what jax makes of it, products of TF32; `highest` is float32 to the letter.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from ghn_jax.deepnets import sampling
from ghn_jax.executor import lanes
from ghn_jax.models.config import preset
from ghn_jax.models.templates import deepnets_templates
from ghn_jax.runtime.compilation import CompilationCounter
from ghn_jax.training import executors, meta
from ghn_jax.training.pmapped import replicate
from ghn_jax.training.recipes import recipe


def main(
    configurations: tuple[str, ...] = ("blocks:float32:1", "blocks:bfloat16:1", "blocks:highest:1"),
    steps: int = 2,
    rounds: int = 3,
    batch_size: int = 64,
    image_size: int = 32,
    draw: str = "published",
) -> None:
    """Prints the table.

    Args:
      configurations: executor:precision:networks at a time; precision is float32, highest or bfloat16.
      steps: different meta-batches of 8 architectures.
      rounds: times that all of them are run; the last counts.
      batch_size, image_size: of each network's images.
      draw: of architectures, as in train.py.
    """
    print(
        f"on {jax.devices()[0].device_kind}: {steps} x 8 architectures, {batch_size} images of {image_size} pixels"
    )
    print(
        "| executor | precision | at a time | compiled, s | programs | architectures a second |\n|"
        + "---|" * 6,
        flush=True,
    )
    counter = CompilationCounter()
    counter.register()
    drawn = [sampling.meta_batch(0, step, 8, 10, image_size, None, draw) for step in range(steps)]
    for configuration in configurations:
        executor, precision, at_a_time = configuration.split(":")
        exact = precision == "highest"
        lanes.ON_ACCELERATORS = int(at_a_time)
        jax.config.update("jax_default_matmul_precision", precision if exact else None)
        before, begun = counter.count, time.perf_counter()
        run = _Run(executor, "float32" if exact else precision, batch_size, image_size)
        batches = [run.executor.prepare(batch) for batch in drawn]
        run.steps(batches)
        compiled = time.perf_counter() - begun
        row = f"| {executor} | {precision} | {at_a_time} | {compiled:.0f} | {counter.count - before}"
        print(row, end="", flush=True)  # known long before the rest
        seconds = [run.steps(batches) for _ in range(rounds)][-1]
        print(f" | {8 * steps / seconds:.2f} |", flush=True)


class _Run:
    def __init__(self, executor: str, precision: str, batch_size: int, image_size: int):
        config, chosen = preset("ghn2", 10, image_size), recipe("efficient")
        templates, optimizer = deepnets_templates(config, image_size), chosen.make_optimizer(1000)
        step = meta.make_ghn_step(config, templates, optimizer, jax.devices(), chosen)
        size = (batch_size, image_size, image_size, 3)
        setting = executors.Setting(config, templates, step, size, 0.0, precision)
        self.executor = executors.make_executor(executor, setting, batch_size)
        self._state: Any = replicate(
            meta.init_state(config, optimizer, jax.random.key(0), chosen), jax.devices()
        )
        rng = np.random.default_rng(0)
        self._images = jnp.asarray(rng.standard_normal((8, *size), np.float32))
        self._labels = jnp.asarray(rng.integers(0, 10, (8, batch_size)))

    def steps(self, batches: list[Any]) -> float:
        """Seconds of a step of each."""
        begun = time.perf_counter()
        for batch in batches:
            self._state, measured = self.executor.step(
                self._state, batch, self._images, self._labels, jax.random.key(1)
            )
            jax.block_until_ready(measured)
        return time.perf_counter() - begun


if __name__ == "__main__":
    tyro.cli(main)
