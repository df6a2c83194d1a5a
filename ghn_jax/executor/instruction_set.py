"""What the fused executor can do, for one family of architectures: those whose channels are padded to one width.

An operation is a block at one shape, forward or backward. A program that interprets any network of a family contains
each operation of the family once. Which ones these are says `ghn_jax.deepnets.families`.

In the interpreter an operation returns its result padded to the size of its class; see `ghn_jax.executor.fused`.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, NamedTuple

from ghn_jax.executor import blocks
from ghn_jax.executor.blocks import Shape
from ghn_jax.executor.convolutions import on_cpu
from ghn_jax.executor.simplify import AnyBlock, Step, output_shape

FLAT_SIZES = (1 << 24, 1 << 26)
"""Lengths of a flat vector; hardly any network of training needs the second."""


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
