"""Families of architectures: those whose channels are padded to one width, which one compiled program can run.

What a family's program must contain is found by lowering a *cover*, a few made-up architectures that have every
operation of a cell at every place where it can have a shape of its own.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

from ghn_jax.deepnets.architectures import OPS, Architecture, Genotype
from ghn_jax.deepnets.lowering import lower
from ghn_jax.executor.blocks import Shape
from ghn_jax.executor.instruction_set import FLAT_SIZES, InstructionSet, collect
from ghn_jax.executor.simplify import simplify

FAMILIES = (32, 64, 128)
"""Widths of the first cell, with padding, in training. Few families are enough for all devices to find networks of the
same one in a meta-batch."""


def family_of(arch: Architecture) -> int:
    """The width to which the channels of an architecture's first cell are padded."""
    family = FAMILIES[0]
    while family < arch.C:
        family *= 2
    return family


@functools.cache
def instruction_set(
    family: int, images: Shape, num_classes: int = 10, flat_size: int = FLAT_SIZES[0]
) -> InstructionSet:
    """The instruction set of a family.

    Args:
      family: width of the first cell, with padding.
      images: shape of the batch, (batch, size, size, 3).
      num_classes: labels.
      flat_size: length of the flat vector; what has longer weights is left out.
    """
    lowered = (lower(arch, num_classes, images[1]) for arch in cover(family))
    return collect([simplify(network.program, images) for network in lowered], images, num_classes, flat_size)


def cover(family: int) -> Iterator[Architecture]:
    """Architectures that together have all operations of a family."""
    for multiplier in (1, 2):
        plain = Architecture(_chain(["conv_3x3"]), 4, family, multiplier)
        for base in (
            plain,
            dataclasses.replace(plain, stem_pool=True),
            dataclasses.replace(plain, stem_type=1),
        ):
            yield from _cells(base, [op for op in OPS if op not in ("none", "msa", *_left_out(family))])
            yield from (dataclasses.replace(base, ks=ks) for ks in (3, 5, 7))
            yield dataclasses.replace(base, fc_layers=2)
            if family == FAMILIES[0]:  # only these classify whole maps
                for count, layers in itertools.product((1, 2, 3, 4), (1, 2)):
                    genotype = _chain(["conv_3x3"] * 4, concat=count)
                    yield dataclasses.replace(base, genotype=genotype, glob_avg=False, fc_layers=layers)
        vit = dataclasses.replace(plain, genotype=_chain(["msa"]))
        yield from _cells(vit, [op for op in OPS if op not in ("none", *_left_out(family))])
        for channels in range(family // 2 + 16, family + 1, 16):  # attention is not padded
            yield dataclasses.replace(vit, C=channels)


def _left_out(family: int) -> tuple[str, ...]:
    """Operations that only the narrowest networks have."""
    return () if family == FAMILIES[0] else ("conv_5x5", "conv_7x7")


def _cells(base: Architecture, ops: list[str]) -> Iterator[Architecture]:
    """All operations in cells of all kinds; where reduction cells lie decides what they read."""
    for preproc in (True,) if base.C_mult > 1 else (True, False):
        for n_cells in (4, 5, 6, 9):
            yield dataclasses.replace(base, genotype=_chain(ops), n_cells=n_cells, preproc=preproc)


def _chain(ops: list[str], concat: int = 1) -> Genotype:
    """Each sum node adds an operation on the cell's first input and the same one on the sum node before."""
    edges = [(ops[0], 0), ("skip_connect", 1)]
    for step, op in enumerate(ops[1:], start=1):
        edges += [(op, 0), (op, step + 1)]
    last = len(ops) + 2
    outputs = tuple(range(last - concat, last))
    return Genotype(tuple(edges), outputs, tuple(edges), outputs)
