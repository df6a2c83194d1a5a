"""Assembles a network to a table of int32 that the fused executor interprets.

One row is one operation. The forward pass, the loss and the backward pass follow each other in one table, and share one
memory: places are handed out on the host, as registers of a program would be, and used again when a value is of no
further use. So the memory holds what the backward pass will need, and little else.
"""

import bisect
import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from ghn_jax.executor import blocks
from ghn_jax.executor.instruction_set import CrossEntropy, InstructionSet, Operation, copy_of
from ghn_jax.executor.program import IMAGE, Instruction
from ghn_jax.executor.simplify import AnyBlock, Step, Widen, simplify

Table = Int[np.ndarray, "row 7"]

CLASS, BRANCH, WEIGHTS, FIRST, SECOND, OUT, SIZE = range(7)
"""Columns of a table: which operation; where its weights, its input and its second input (backward: the gradient of its
output) start; where its result starts; and how long the result is if it replaces what was there, 0 if it adds to it."""

END = -1
"""The class of rows after the last one."""

MAX_ROWS = 2048
"""Rows of every table."""

MAX_PLACES = np.iinfo(np.int32).max
"""The longest memory that a table can tell the places of."""


class Assembled(NamedTuple):
    """A network as a table.

    Attributes:
      table: its rows, up to MAX_ROWS.
      memory_size: least length of the memory.
      flat_size: least length of the flat vector.
    """

    table: Table
    memory_size: int
    flat_size: int


def assemble(program: Sequence[Instruction], instructions: InstructionSet) -> Assembled:
    """Assembles a program.

    Raises ValueError if it needs an operation that is not in the instruction set, too many rows or too much memory.
    """
    assembler = _Assembler(instructions, simplify(program, instructions.images))
    needs = {"operations": (len(assembler.rows), MAX_ROWS - 1), "places": (assembler.memory_size, MAX_PLACES)}
    for what, (needed, available) in needs.items():
        if needed > available:
            raise ValueError(
                f"`program` needs {needed:,} {what}, more than {available:,}: use the executor blocks"
            )
    table = empty_table()
    table[: len(assembler.rows)] = assembler.rows
    return Assembled(table, assembler.memory_size, assembler.flat_size)


def empty_table() -> Table:
    """A table of no operations: loss and gradient are 0."""
    return np.full((MAX_ROWS, 7), END, np.int32)


def logits_size(instructions: InstructionSet) -> int:
    """Places of the logits, with which a memory begins. Their gradient and the loss follow."""
    return int(np.prod(instructions.logits))


def _is_linear(block: AnyBlock) -> bool:
    """Whether a block's gradient does not depend on its input."""
    if isinstance(block, blocks.Pool):
        return block.kind == "avg"
    kinds = (
        blocks.Add,
        blocks.PositionalEncoding,
        blocks.Dropout,
        blocks.GlobalAverage,
        blocks.Subsample,
        Widen,
    )
    return isinstance(block, kinds)


class _Memory:
    """Hands out places, the first that are free and long enough."""

    def __init__(self, first: int):
        self._free = [(first, 1 << 62)]  # (start, end), sorted
        self._size: dict[int, int] = {}

    def take(self, size: int) -> int:
        for i, (start, end) in enumerate(self._free):
            if end - start >= size:
                self._free[i : i + 1] = [(start + size, end)] if end - start > size else []
                self._size[start] = size
                return start
        raise AssertionError

    def give(self, start: int) -> None:
        end = start + self._size.pop(start)
        i = bisect.bisect(self._free, (start, end))
        if i < len(self._free) and self._free[i][0] == end:
            end = self._free.pop(i)[1]
        if i and self._free[i - 1][1] == start:
            i -= 1
            start = self._free.pop(i)[0]
        self._free.insert(i, (start, end))


class _Assembler:
    """Follows a network forward and back; keeps track of what is where, and who still needs it."""

    def __init__(self, instructions: InstructionSet, steps: Sequence[Step]):
        self._instructions = instructions
        logits, place = steps[-1].output, logits_size(instructions)
        self._memory = _Memory(2 * place + 1)
        self._values, self._gradients = {IMAGE: 0, logits: 0}, {logits: place}
        self._unread = collections.Counter(r for step in steps for r in step.inputs)
        self._unwritten = collections.Counter(step.output for step in steps)
        again = (r for step in steps if not _is_linear(step.block) for r in step.inputs)
        self._uses = self._unread + collections.Counter(again) + collections.Counter([IMAGE, logits])
        self._sharing = collections.Counter([place, place])  # registers whose gradients are at a place
        self.rows: list[tuple[int, ...]] = []
        self.memory_size = self.flat_size = 0

        for step in steps:
            self._forward(step)
        self._emit(Operation(CrossEntropy(), instructions.logits), out=place, replaces=True)
        for step in reversed(steps):
            if isinstance(step.block, blocks.Add):
                self._backward_add(step)
            else:
                self._backward(step)

    def _forward(self, step: Step) -> None:
        first, second = (*(self._values[register] for register in step.inputs), 0)[:2]
        for register in step.inputs:
            self._used(register)
        operation = Operation(step.block, step.shape)
        if step.output not in self._values:
            self._values[step.output] = self._memory.take(operation.value_size)
        self._emit(operation, step.offset, first, second, self._values[step.output], not step.adds)

    def _backward(self, step: Step) -> None:
        (register,) = step.inputs
        first, second = self._values.get(register, 0), self._gradients[step.output]
        if not _is_linear(step.block):
            self._used(register)
        self._unwritten[step.output] -= 1
        if not self._unwritten[step.output]:
            self._release(step.output)
        operation = Operation(step.block, step.shape, backward=True)
        self._add_to_gradient(operation, register, step.offset, first, second)

    def _backward_add(self, step: Step) -> None:
        """The gradients of both inputs are that of the sum: they share its place if nothing will be added."""
        place = self._gradients[step.output]
        for register in step.inputs:
            if self._unread[register] == 1 and register not in self._gradients:
                self._gradients[register] = place
                self._sharing[place] += 1
            else:
                self._add_to_gradient(copy_of(step.shape), register, first=place)
        self._release(step.output)

    def _add_to_gradient(
        self, operation: Operation, register: int, weights: int = 0, first: int = 0, second: int = 0
    ) -> None:
        self._unread[register] -= 1
        replaces = register not in self._gradients
        if replaces and operation.value_size:
            place = self._gradients[register] = self._memory.take(operation.value_size)
            self._sharing[place] += 1
        self._emit(operation, weights, first, second, self._gradients.get(register, 0), replaces)

    def _used(self, register: int) -> None:
        """Frees the place of a value that was used for the last time."""
        self._uses[register] -= 1
        if not self._uses[register]:
            self._memory.give(self._values[register])

    def _release(self, register: int) -> None:
        """Frees the place of a gradient, unless another register's is there too."""
        place = self._gradients[register]
        self._sharing[place] -= 1
        if not self._sharing[place]:
            self._memory.give(place)

    def _emit(
        self,
        operation: Operation,
        weights: int = 0,
        first: int = 0,
        second: int = 0,
        out: int = 0,
        replaces: bool = False,
    ) -> None:
        number, branch = self._instructions.place(operation)
        size_class = self._instructions.classes[number]
        size = operation.value_size if replaces else 0
        self.rows.append((number, branch, weights, first, second, out, size))
        needed = max(blocks.num_weights(operation.block), size_class.weights_size)
        self.flat_size = max(self.flat_size, weights + needed)
        self.memory_size = max(self.memory_size, out + size_class.value_size)
