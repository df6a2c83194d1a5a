"""Which architectures an evaluation is of: of a split, sampled or stored, or named ones."""

import dataclasses
import sys
from collections.abc import Callable, Sequence

from ghn_jax.deepnets import sampling
from ghn_jax.deepnets.architectures import Architecture
from ghn_jax.deepnets.lowering import lower
from ghn_jax.evaluation.options import EvaluateOptions
from ghn_jax.executor.program import Lowered
from ghn_jax.runtime.errors import called, check_range, unknown_name
from ghn_jax.targets import NAMES

Maker = Callable[[int, int], Lowered]
"""From the number of classes and the size of the images to a network."""


def select(options: EvaluateOptions, image_size: int) -> list[tuple[str, Maker]]:
    """The chosen architectures: a key, and what makes the network.

    Raises ValueError for an unknown split or name, an index outside the split, and a file that is missing or damaged.
    """
    check_range("num_archs", options.num_archs, 1)
    if options.arch is not None and not options.arch.isdecimal():
        return [(options.arch.lower(), _named(options.arch))]
    if options.split == "predefined":
        return [(name, _named(name)) for name in sampling.PREDEFINED]
    architectures = _split(options, image_size)
    first = int(options.arch or 0)
    with called("index", "arch"):
        architectures[first]  # raises for an index outside the split
    last = first + 1 if options.arch else min(options.num_archs or sys.maxsize, len(architectures))
    return [(str(index), _maker(architectures, index, options.channels)) for index in range(first, last)]


def _split(options: EvaluateOptions, image_size: int) -> Sequence[Architecture]:
    if options.deepnets_dir is None:
        return _Sampled(options.split, options.seed, image_size)
    from ghn_jax.deepnets.stored import open_split  # needs h5py

    with called("path", "deepnets_dir"):
        return open_split(options.deepnets_dir, options.split, image_size)


class _Sampled(Sequence[Architecture]):
    """A split, sampled when asked for."""

    def __init__(self, split: str, seed: int, image_size: int):
        self._arguments = split, seed, image_size

    def __len__(self) -> int:
        return sampling.SPLITS[self._arguments[0]].size

    def __getitem__(self, index):
        split, seed, image_size = self._arguments
        return sampling.sample(split, index, seed, image_size)


def _maker(architectures: Sequence[Architecture], index: int, channels: int | None) -> Maker:
    def make(num_classes: int, image_size: int) -> Lowered:
        arch = architectures[index]
        return lower(dataclasses.replace(arch, C=channels or arch.C), num_classes, image_size)

    return make


def _named(name: str) -> Maker:
    if name.lower() not in (*sampling.NAMED, *sampling.PREDEFINED):
        raise unknown_name("arch", name, [*sampling.NAMED, *NAMES])
    return lambda num_classes, image_size: sampling.named(name, num_classes, image_size)
