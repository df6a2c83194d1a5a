"""A training run whose networks and GHN are small, for `benchmarks.faults` and tests: nothing of it is made up.

python -m benchmarks.small_run OPTIONS OF train.py
"""

import dataclasses
from typing import Any

from ghn_jax.deepnets import sampling
from ghn_jax.deepnets.architectures import Architecture, Genotype
from ghn_jax.deepnets.lowering import lower
from ghn_jax.models import config
from ghn_jax.models.templates import Template, deepnets_templates
from ghn_jax.runtime import commands
from ghn_jax.training import loop
from ghn_jax.training.loop import TrainOptions as TrainOptions

_CELLS = [
    Genotype((("conv_1x1", 0), ("skip_connect", 1)), (2,), (("max_pool_3x3", 0), ("skip_connect", 1)), (2,)),
    Genotype((("conv_3x3", 0), ("skip_connect", 1)), (2,), (("avg_pool_3x3", 0), ("skip_connect", 1)), (2,)),
]
_ARCHITECTURES = [
    Architecture(cell, n_cells=1, C=16, C_mult=1, stem_pool=True, norm=norm, preproc=False)
    for cell in _CELLS
    for norm in (True, False)
]


def _meta_batch(
    seed: int, step: int, size: int, num_classes: int, image_size: int, *_: Any
) -> sampling.MetaBatch:
    indices = tuple((seed + step + place) % len(_ARCHITECTURES) for place in range(size))
    chosen = tuple(_ARCHITECTURES[index] for index in indices)
    return sampling.MetaBatch(indices, chosen, tuple(lower(arch, num_classes, image_size) for arch in chosen))


def sample(split: str, index: int, seed: int = 0, image_size: int = 32) -> Architecture:
    return _ARCHITECTURES[index % len(_ARCHITECTURES)]


def _config(name: str, num_classes: int, image_size: int) -> config.GHNConfig:
    return dataclasses.replace(config.GHNConfig(), num_classes=num_classes, hidden=8, channels=8)


def _templates(chosen: config.GHNConfig, image_size: int) -> tuple[Template, ...]:
    """Those that kernels of these networks need: fewer to compile."""
    return tuple(
        form for form in deepnets_templates(chosen, image_size) if form.height == form.width in (1, 3)
    )


def install(patch: Any = setattr) -> None:
    """Puts the small parts in place; `patch` as of setattr."""
    patch(loop.config, "preset", _config)
    patch(loop, "deepnets_templates", _templates)
    patch(loop.sampling, "meta_batch", _meta_batch)
    patch(loop.sampling, "sample", sample)


def train(options: TrainOptions) -> None:
    """As `ghn_jax.training.loop.train`."""
    install()
    loop.train(options)


if __name__ == "__main__":
    commands.run(TrainOptions, train)
