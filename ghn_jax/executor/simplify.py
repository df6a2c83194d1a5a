"""Rewrites a program in terms of fewer kinds of operations, for the fused executor.

A concatenation is read by a few blocks only, and all of them are linear in it but for a ReLU. So it need not exist:

  conv(concat(x_0, x_1)) = conv_0(x_0) + conv_1(x_1)

where conv_i has the rows of the kernel that belong to x_i, which lie together in the flat vector. What reads maps of
one, two, three or four times the channels is then the same few operations; maps of zeros take no part. Likewise the two
halves of a factorised reduction are two operations that write to one register, and a linear layer is a 1x1 convolution
and an added vector.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ghn_jax.executor import blocks, convolutions
from ghn_jax.executor.blocks import Block, Map, Shape
from ghn_jax.executor.program import IMAGE, Instruction


@dataclasses.dataclass(frozen=True, slots=True)
class HalfReduction:
    """One half of a `FactorizedReduction`, as a map of all its channels of which the other half is zero."""

    inputs: int
    half: int
    side: int

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The 1x1 kernel."""
        return ((self.inputs, self.half),)

    def __call__(self, weights: Sequence[Array], x: Map) -> Map:
        """A map of half the size."""
        x = jax.nn.relu(x[:, self.side :: 2, self.side :: 2])
        return _widen(convolutions.pointwise(x, weights[0]), 2, self.side)


@dataclasses.dataclass(frozen=True, slots=True)
class Widen:
    """A map as number `index` of `count` concatenated maps, of which the others are zero."""

    count: int
    index: int
    shapes: ClassVar[tuple[Shape, ...]] = ()

    def __call__(self, weights: Sequence[Array], x: Map) -> Map:
        """A map of `count` times the channels."""
        return _widen(x, self.count, self.index)


def _widen(x: Map, count: int, index: int) -> Map:
    channels = x.shape[-1]
    return jnp.pad(x, ((0, 0),) * 3 + ((index * channels, (count - 1 - index) * channels),))


AnyBlock = Block | HalfReduction | Widen


class Step(NamedTuple):
    """Applies a block.

    Attributes:
      block: one of `Block`, `HalfReduction` or `Widen`.
      inputs: registers it reads: two for a sum, else one.
      shape: of each of them.
      output: register it writes.
      output_shape: its shape.
      offset: where the block's weights start in the flat vector.
      adds: whether the output is added to what an earlier step wrote there.
    """

    block: AnyBlock
    inputs: tuple[int, ...]
    shape: Shape
    output: int
    output_shape: Shape
    offset: int
    adds: bool = False


class _Value(NamedTuple):
    """A map or vector: registers of equal shape, side by side along the channels; None for zeros."""

    parts: tuple[int | None, ...]
    shape: Shape

    def live(self) -> Iterator[tuple[int, int]]:
        """Number and register of the parts that are not zero."""
        return ((number, part) for number, part in enumerate(self.parts) if part is not None)


def simplify(program: Sequence[Instruction], images: Shape) -> tuple[Step, ...]:
    """The steps of a program for images of this shape; the last one writes the logits, padded to whole rows.

    Raises ValueError for a program that is none of a cell-based architecture.
    """
    return _Simplifier(program, images).steps()


class _Simplifier:
    def __init__(self, program: Sequence[Instruction], images: Shape):
        self._program = program
        self._values = {IMAGE: _Value((IMAGE,), images)}
        self._steps: list[Step] = []
        self._registers = 1 + max(instruction.output for instruction in program)

    def steps(self) -> tuple[Step, ...]:
        for instruction in self._program:
            self._values[instruction.output] = self._instruction(instruction)
        return tuple(self._steps)

    def _instruction(self, instruction: Instruction) -> _Value:
        block, offset = instruction.block, instruction.offset
        values = [self._values[register] for register in instruction.inputs]
        x = values[0]
        if isinstance(block, blocks.Concatenate):
            rest = iter(values)
            zero = (None,) * len(x.parts)
            return _Value(sum((zero if z else next(rest).parts for z in block.zeros), ()), x.shape)
        if isinstance(block, blocks.Convolution) and block.kernel == (1, 1):
            return self._pointwise(block, x, offset)
        if isinstance(block, blocks.FactorizedReduction):
            return self._factorized_reduction(block, x, offset)
        if isinstance(block, blocks.GlobalAverage):
            averages: dict[int | None, int | None] = {None: None}
            for _, part in x.live():
                if part not in averages:
                    averages[part] = self._step(block, (part,), x.shape, offset).parts[0]
            parts = tuple(averages[part] for part in x.parts)
            return _Value(parts, (x.shape[0], x.shape[-1]))
        if isinstance(block, blocks.Linear):
            return self._linear(block, x, offset)
        if any(len(value.parts) > 1 for value in values):
            raise ValueError(
                f"`program` has a {type(block).__name__} of a concatenation, as no cell-based network has: use the "
                "executor blocks"
            )
        return self._step(block, tuple(value.parts[0] for value in values), x.shape, offset)

    def _pointwise(self, block: blocks.Convolution, x: _Value, offset: int) -> _Value:
        part = dataclasses.replace(block, inputs=x.shape[-1])
        return self._sum([(part, r, offset + n * blocks.num_weights(part)) for n, r in x.live()], x.shape)

    def _factorized_reduction(self, block: blocks.FactorizedReduction, x: _Value, offset: int) -> _Value:
        terms = []
        for side in (0, 1):
            part = HalfReduction(x.shape[-1], block.half, side)
            start = offset + side * block.inputs * block.half
            terms += [(part, r, start + n * blocks.num_weights(part)) for n, r in x.live()]
        return self._sum(terms, x.shape)

    def _linear(self, block: blocks.Linear, x: _Value, offset: int) -> _Value:
        if len(x.shape) == 4:  # a whole map: the rows of the kernel that belong to a part do not lie together
            count = len(x.parts)
            if count > 1:
                x = self._sum([(Widen(count, n), r, offset) for n, r in x.live()], x.shape)
            return self._step(dataclasses.replace(block, classes=None), (x.parts[0],), x.shape, offset)
        pixel = _Value(x.parts, (x.shape[0], 1, 1, x.shape[1]))
        kernel = blocks.Convolution((1, 1), block.inputs, block.outputs, relu=block.relu)
        y = self._pointwise(kernel, pixel, offset)
        bias = blocks.PositionalEncoding(1, block.outputs)
        y = self._step(bias, (y.parts[0],), y.shape, offset + blocks.num_weights(kernel))
        return y._replace(shape=(y.shape[0], block.outputs))

    def _sum(self, terms: Sequence[tuple[AnyBlock, int, int]], shape: Shape) -> _Value:
        """Several blocks' outputs, added in one register; each term is a block, its input and its offset."""
        (block, part, offset), *rest = terms
        value = self._step(block, (part,), shape, offset)
        for block, part, offset in rest:
            self._step(block, (part,), shape, offset, value.parts[0])
        return value

    def _step(self, block, inputs, shape: Shape, offset: int, output: int | None = None) -> _Value:
        adds = output is not None
        if not adds:
            output, self._registers = self._registers, self._registers + 1
        out_shape = output_shape(block, (shape,) * len(inputs))
        self._steps.append(Step(block, inputs, shape, output, out_shape, offset, adds))
        return _Value((output,), out_shape)


@functools.cache
def output_shape(block: AnyBlock, inputs: tuple[Shape, ...]) -> Shape:
    """Shape of what a block makes of inputs of these shapes."""
    if isinstance(block, blocks.Dropout):
        return inputs[0]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((blocks.num_weights(block),), *inputs)]
    return jax.eval_shape(functools.partial(blocks.apply, cast(Block, block)), *arrays).shape
