"""Times whole meta-training steps against the public PyTorch code, in turn, on the same architectures.

    python -m benchmarks.meta_step --public CHECKOUT --torch_python PYTHON

CHECKOUT is a copy of github.com/facebookresearch/ppuda, PYTHON an interpreter with torch, networkx and h5py. Run it on
an idle machine. Published settings: 8 architectures x 64 images of 32 pixels; from graphs to updated weights, in steady
state.
"""

import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.public import run
from ghn_jax.deepnets import sampling
from ghn_jax.deepnets.lowering import lower
from ghn_jax.executor import lanes
from ghn_jax.executor.warm_up import WarmUp
from ghn_jax.models.config import preset
from ghn_jax.models.templates import deepnets_templates
from ghn_jax.runtime import compilation, memory
from ghn_jax.training import meta, prepare
from ghn_jax.training.pmapped import replicate
from ghn_jax.training.recipes import recipe

_BATCH = 64


def main(
    public: pathlib.Path | None = None,
    torch_python: str = "python",
    steps: int = 6,
    meta_batch_size: int = 8,
    rounds: int = 3,
) -> None:
    """Prints seconds per architecture of both, and their ratio; without `public`, of this project alone.

    Args:
      public: a copy of the public code.
      torch_python: an interpreter with PyTorch.
      steps: meta-batches; the same for both.
      meta_batch_size: architectures in each.
      rounds: times each side runs all steps, in turn; the first is not counted.
    """
    batches = [sampling.meta_batch(0, step, meta_batch_size).architectures for step in range(steps)]
    arguments = [[arch.to_dict() for arch in batch] for batch in batches]
    ours, theirs = Ours(batches), []
    per_arch: dict[str, list[float]] = {"ghn_jax": [], "public": []}
    for number in range(rounds):
        if public is not None:
            theirs = run("meta_step.py", public, torch_python, meta_batches=arguments, batch_size=_BATCH)
        own = ours.run()
        if number:
            per_arch["ghn_jax"].append(sum(own) / steps / meta_batch_size)
            per_arch["public"] += [sum(theirs) / steps / meta_batch_size] if public is not None else []
        print(f"round {number}: ghn_jax {sum(own):.1f} s, public {sum(theirs):.1f} s", flush=True)
    for name, values in per_arch.items():
        if values:
            print(f"{name}: {statistics.median(values):.3f} s per architecture")
    if per_arch["public"]:
        ratio = statistics.median(per_arch["ghn_jax"]) / statistics.median(per_arch["public"])
        print(f"ratio: {ratio:.2f} (below 1: ghn_jax is faster)")


class Ours:
    """This project's side: compiles what the meta-batches need, then runs them as often as asked."""

    def __init__(self, batches):
        compilation.use_persistent_cache()
        memory.reuse_freed_memory()  # as train.py does
        lanes.share_cores()
        self._config = preset("ghn2")
        self._templates = deepnets_templates(self._config, 32)
        optimizer = recipe("published").make_optimizer(num_steps=1000)
        devices = jax.local_devices()[:1]
        self._ghn = meta.make_ghn_step(self._config, self._templates, optimizer, devices)
        state = meta.init_state(self._config, optimizer, jax.random.key(0))
        self._state = replicate(state, devices)
        rng = np.random.default_rng(0)
        self._images = jax.device_put(rng.standard_normal((_BATCH, 32, 32, 3), np.float32), devices[0])
        self._labels = jax.device_put(jnp.asarray(rng.integers(0, 10, _BATCH)), devices[0])
        self._networks = [tuple(lower(arch) for arch in batch) for batch in batches]
        warm_up = WarmUp((_BATCH, 32, 32, 3), devices)
        for networks in self._networks:
            warm_up(network.program for network in networks)

    def run(self) -> list[float]:
        """Seconds of each step, from graphs to updated weights."""
        seconds = []
        for networks in self._networks:
            start = time.perf_counter()
            batch = prepare.prepare(networks, self._config, self._templates, num_devices=1)
            self._state, measured = meta.meta_step(
                self._ghn, self._state, batch, [self._images[None]], [self._labels[None]], jax.random.key(1)
            )
            float(measured.loss[0])
            seconds.append(time.perf_counter() - start)
        return seconds


if __name__ == "__main__":
    tyro.cli(main)
