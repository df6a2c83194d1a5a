"""One compiled program that runs any network of a family, given as a table.

  while a row is left:  memory[out] <- operation(row)(memory, weights),  gradient[weights] += ...

The table (`ghn_jax.executor.table`) holds the forward pass, the loss and the backward pass; its operations are the
blocks of the other executor, and their derivatives. Since the network is data, devices under pmap run different
ones at the same time, and nothing but this program is compiled for a whole family (`ghn_jax.executor.instruction_set`).

XLA keeps the memory in place only if a loop's body changes it once, and nothing else in the body reads it but a switch.
So an operation reads from the memory and *returns* its result, padded to one of a few sizes, and for each size there is
one loop, over the next rows of that size, with a `lax.switch` over the operations.
"""

import functools
import math
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ghn_jax.executor import blocks
from ghn_jax.executor.blocks import Shape
from ghn_jax.executor.instruction_set import CrossEntropy, InstructionSet, Operation, SizeClass
from ghn_jax.executor.run import Flat, Images, Outcome
from ghn_jax.executor.table import BRANCH, CLASS, END, FIRST, OUT, SECOND, SIZE, WEIGHTS, logits_size

Memory = Float[Array, " place"]


class _Operands(NamedTuple):
    """What operations read, apart from their row."""

    memory: Memory
    flat: Float[Array, " weight"]
    images: Images
    labels: Int[Array, " batch"]
    dropout_key: Array


def loss_and_gradient(
    instructions: InstructionSet,
    memory: Memory,
    table: Int[Array, "row 7"],
    flat: Flat,
    images: Images,
    labels: Int[Array, " batch"],
    dropout_key: Array,
    label_smoothing: float = 0.0,
) -> tuple[Outcome, Memory]:
    """Runs a network forward and backward; to be jitted or pmapped by the caller.

    Args:
      instructions: those of the network's family, for images of this shape; static.
      memory: room to work in, of any content, of at least the table's `memory_size`. Donate it.
      table: the network, from `ghn_jax.executor.table.assemble`.
      flat: its parameters, of any shape with at least the table's `flat_size` places.
      images, labels, label_smoothing: as for `run.loss_and_gradient`.
      dropout_key: a PRNG key. For a program without dropout, any.

    Returns the outcome (zero for an empty table) and the memory, to be used again.
    """

    def loop_over(number: int, size_class: SizeClass, state):
        branches = [
            functools.partial(_result, operation, size_class, label_smoothing, instructions.num_classes)
            for operation in size_class.operations
        ]
        branches += [functools.partial(_zeros, size_class)]  # a switch of one branch would be no switch

        def is_next(state) -> Array:
            return table[state[0], CLASS] == number

        def body(state):
            index, memory, gradient = state
            row = table[index]
            operands = _Operands(memory, flat, images, labels, dropout_key)
            value, d_weights = lax.switch(row[BRANCH], branches, row, operands)
            if size_class.value_size:
                memory = _add_at(memory, row[OUT], value, row[SIZE])
            if size_class.weights_size:
                gradient = _add_at(gradient, row[WEIGHTS], d_weights)
            return index + 1, memory, gradient

        return lax.while_loop(is_next, body, state)

    def rows(state):
        for number, size_class in enumerate(instructions.classes):
            state = loop_over(number, size_class, state)
        return state

    shape, flat = flat.shape, flat.reshape(-1)
    state = jnp.int32(0), memory, jnp.zeros_like(flat)
    _, memory, gradient = lax.while_loop(lambda state: table[state[0], CLASS] != END, rows, state)
    size = logits_size(instructions)
    logits = memory[:size].reshape(instructions.logits)[:, : instructions.num_classes]
    empty = is_empty(table)
    loss = jnp.where(empty, 0.0, memory[2 * size])
    return Outcome(loss, jnp.where(empty, 0.0, logits), gradient.reshape(shape)), memory


def is_empty(table: Int[Array, "row 7"]) -> Array:
    """Whether a table holds no network."""
    return table[0, CLASS] == END


def _add_at(array: Array, start: Array, value: Array, replaced: Array | None = None) -> Array:
    """Adds a value to a part of an array, of which the first `replaced` places count as zero before."""
    old = lax.dynamic_slice(array, (start,), value.shape)
    if replaced is not None:
        old = jnp.where(jnp.arange(len(value)) < replaced, 0.0, old)
    return lax.dynamic_update_slice(array, old + value, (start,))


def _result(
    operation: Operation,
    size_class: SizeClass,
    label_smoothing: float,
    num_classes: int,
    row: Int[Array, " 7"],
    operands: _Operands,
) -> tuple[Array, Array]:
    """The value and the gradient of weights that an operation makes, padded."""

    def read(column: int, shape: Shape) -> Array:
        return _read(operands.memory, row[column], shape)

    x = operands.images if operation.of_image else read(FIRST, operation.shape)
    if isinstance(operation.block, CrossEntropy):
        value = _cross_entropy(x, operands.labels, num_classes, label_smoothing)
        return _padded(value, size_class.value_size), jnp.zeros(size_class.weights_size, value.dtype)
    block = cast(blocks.Block, operation.block)
    weights = _read(operands.flat, row[WEIGHTS], (blocks.num_weights(block),))
    rest = [operands.dropout_key] if isinstance(block, blocks.Dropout) else []
    if not operation.backward:
        rest += [read(SECOND, operation.shape)] if operation.num_inputs == 2 else []
        value, d_weights = blocks.apply(block, weights, x, *rest), weights[:0]
    else:
        _, pull_back = jax.vjp(lambda w, x: blocks.apply(block, w, x, *rest), weights, x)
        d_weights, value = pull_back(read(SECOND, operation.output_shape))
        value = value if operation.value_size else weights[:0]
    return _padded(value, size_class.value_size), _padded(d_weights, size_class.weights_size)


def _zeros(size_class: SizeClass, row: Int[Array, " 7"], operands: _Operands) -> tuple[Array, Array]:
    dtype = operands.memory.dtype
    return jnp.zeros(size_class.value_size, dtype), jnp.zeros(size_class.weights_size, dtype)


def _read(array: Array, start: Array, shape: Shape) -> Array:
    return lax.dynamic_slice(array, (start,), (math.prod(shape),)).reshape(shape)


def _padded(value: Array, size: int) -> Array:
    return jnp.pad(value.reshape(-1), (0, size - value.size))


def _cross_entropy(logits: Array, labels: Array, num_classes: int, label_smoothing: float) -> Array:
    """The gradient of padded logits, flat, followed by the loss."""

    def loss_of(logits: Array) -> Array:
        log_p = jax.nn.log_softmax(logits[:, :num_classes])
        target = jax.nn.one_hot(labels, num_classes) * (1.0 - label_smoothing) + label_smoothing / num_classes
        return -(target * log_p).sum(-1).mean()

    loss, gradient = jax.value_and_grad(loss_of)(logits)
    return jnp.append(gradient, loss)
