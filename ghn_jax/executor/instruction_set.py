"""What the fused executor can do, for one family of architectures: those whose channels are padded to one width.

An operation is a block at one shape, forward or backward. A program that interprets any network of a family contains
each operation of the family once. Which ones these are is found by lowering a *cover*, a few made-up architectures that
have every operation of a cell at every place where it can have a shape of its own.

In the interpreter an operation returns its result padded to the size of its class; see `ghn_jax.executor.fused`.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, NamedTuple

from ghn_jax.architectures import OPS, Architecture, Genotype
from ghn_jax.executor import blocks
from ghn_jax.executor.blocks import Shape
from ghn_jax.executor.convolutions import on_cpu
from ghn_jax.executor.simplify import AnyBlock, Step, output_shape, simplify
from ghn_jax.lowering import lower

FAMILIES = (32, 64, 128)
"""Widths of the first cell, with padding, in training. Few families are enough for all devices to find networks of the
same one in a meta-batch."""

FLAT_SIZES = (1 << 24, 1 << 26)
"""Lengths of a flat vector; hardly any network of training needs the second."""


def family_of(arch: Architecture) -> int:
    """The width to which the channels of an architecture's first cell are padded."""
    family = FAMILIES[0]
    while family < arch.C:
        family *= 2
    return family


@dataclasses.dataclass(frozen=True, slots=True)
class Copy:
    """What an addition does to a gradient."""

    shapes: ClassVar[tuple[Shape, ...]] = ()

    def __call__(self, weights, x):
        """The same array."""
        return x


@dataclasses.dataclass(frozen=True, slots=True)
class CrossEntropy:
    """Makes of padded logits their gradient, followed by the loss."""

    shapes: ClassVar[tuple[Shape, ...]] = ()


class Operation(NamedTuple):
    """A block at one shape.

    Attributes:
      shape: of its input, or of each of them.
      backward: whether it makes the gradients of its (single) input and its weights instead of its output.
    """

    block: AnyBlock | Copy | CrossEntropy
    shape: Shape
    backward: bool = False

    @property
    def num_inputs(self) -> int:
        """Number of inputs of the block."""
        return 2 if isinstance(self.block, blocks.Add) else 1

    @property
    def output_shape(self) -> Shape:
        """Of the block."""
        return output_shape(self.block, (self.shape,) * self.num_inputs)

    @property
    def of_image(self) -> bool:
        """Whether the input is the images."""
        return isinstance(self.block, blocks.Convolution) and self.block.of_image

    @property
    def value_size(self) -> int:
        """Length of its result, apart from a gradient of weights."""
        if isinstance(self.block, CrossEntropy):
            return math.prod(self.shape) + 1
        if self.backward:
            return 0 if self.of_image else math.prod(self.shape)
        return math.prod(self.output_shape)

    @property
    def num_weights(self) -> int:
        """Length of the block's weights."""
        return blocks.num_weights(self.block)

    @property
    def weights_size(self) -> int:
        """Length of the gradient of weights that it makes."""
        return self.num_weights if self.backward else 0


class SizeClass(NamedTuple):
    """Operations whose results are padded alike, to `value_size` and `weights_size`."""

    value_size: int
    weights_size: int
    operations: tuple[Operation, ...]


class InstructionSet(NamedTuple):
    """The operations of a family.

    Attributes:
      images: shape of the batch.
      num_classes: true labels.
      logits: shape of the logits, which are padded.
      classes: the operations by size.
      places: number of the class, and number in the class, of each operation.
    """

    images: Shape
    num_classes: int
    logits: Shape
    classes: tuple[SizeClass, ...]
    places: dict[Operation, tuple[int, int]]

    def place(self, operation: Operation) -> tuple[int, int]:
        """Numbers of an operation; ValueError if it is not in the set."""
        if operation not in self.places:
            raise ValueError(
                f"`program` needs {operation.block} of {operation.shape}, which no network of this family has: use "
                "the executor blocks"
            )
        return self.places[operation]


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


def collect(
    networks: Sequence[Sequence[Step]], images: Shape, num_classes: int, flat_size: int = FLAT_SIZES[0]
) -> InstructionSet:
    """The instruction set that suffices for some networks, for images of the shape that they were simplified for."""
    operations = dict.fromkeys(
        o for steps in networks for o in operations_of(steps) if o.num_weights <= flat_size
    )
    classes = tuple(_size_classes(operations))
    places = {
        operation: (number, branch)
        for number, size_class in enumerate(classes)
        for branch, operation in enumerate(size_class.operations)
    }
    return InstructionSet(images, num_classes, logits_shape(networks[0]), classes, places)


def logits_shape(steps: Sequence[Step]) -> Shape:
    """Of a network's logits, with padding."""
    shape = steps[-1].output_shape
    return shape[0], shape[-1]


def operations_of(steps: Sequence[Step]) -> Iterator[Operation]:
    """What a network needs to run forward and backward."""
    for step in steps:
        yield Operation(step.block, step.shape)
        if isinstance(step.block, blocks.Add):
            yield copy_of(step.shape)
        else:
            yield Operation(step.block, step.shape, backward=True)
    yield Operation(CrossEntropy(), logits_shape(steps))


def copy_of(shape: Shape) -> Operation:
    """Copies a map of this shape."""
    return Operation(Copy(), (math.prod(shape),))


def _size_classes(operations: Iterable[Operation]) -> Iterator[SizeClass]:
    """On the CPU results have their exact size; elsewhere a longer write costs less than another loop."""
    operations = list(operations)
    values = _rounded((o.value_size for o in operations), 1 if on_cpu() else 16)
    weights = _rounded((o.weights_size for o in operations), 8)
    sizes = {o: (values[o.value_size], weights[o.weights_size]) for o in operations}
    for size in sorted(set(sizes.values()), reverse=True):
        yield SizeClass(*size, tuple(o for o in operations if sizes[o] == size))


def _rounded(sizes: Iterable[int], ratio: int) -> dict[int, int]:
    """For each size the largest one that is at most `ratio` times as large, of as few as possible; 0 stays."""
    rounded, largest = {0: 0}, 0
    for size in sorted(set(sizes) - {0}, reverse=True):
        largest = size if size * ratio < largest or not largest else largest
        rounded[size] = largest
    return rounded


# -- the cover ---------------------------------------------------------------------------------------------------


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
