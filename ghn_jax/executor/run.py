"""Runs a program: each block is compiled once for all networks that contain it.

A tape walks the program forward, keeps the registers, and walks it back. Inside a block the backward pass
computes again what it needs from the block's inputs, so registers are all that is kept.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ghn_jax.executor import blocks
from ghn_jax.executor.blocks import Block
from ghn_jax.executor.compiler_options import options_for
from ghn_jax.executor.program import IMAGE, Instruction
from ghn_jax.graphs import next_size

_MANY = 1024
"""Instructions: more than networks of DeepNets-1M have, so that what cuts their pieces is compiled for one length."""

Program = Sequence[Instruction]
Flat = Float[Array, "..."]
Images = Float[Array, "batch height width 3"]
Logits = Float[Array, "batch label"]


class Outcome(NamedTuple):
    """What running a network on a batch of labelled images gives.

    Attributes:
      loss: mean cross-entropy.
      logits: one row per image.
      gradient: of the loss, in the shape of the flat parameter vector. Places that belong to no parameter are 0.
    """

    loss: Float[Array, ""]
    logits: Logits
    gradient: Flat


def logits(program: Program, flat: Flat, images: Images) -> Logits:
    """The network's logits, in evaluation (no dropout).

    Args:
      program: a network's program, from `ghn_jax.deepnets.lowering`.
      flat: its parameters, laid out as `ghn_jax.executor.layouts` says; of any shape with at least its `flat_size`
        elements.
      images: normalised images. Batch norm uses the statistics of this batch.
    """
    program = without_dropout(program)
    return forward(program, load_weights(program, flat), images)


def load_weights(program: Program, flat: Flat) -> list[Array]:
    """Cuts the flat vector into the weights of each instruction, to be used on several batches.

    Pieces are as long as the next of a few sizes, so that few different cuts are compiled; blocks ignore the rest.

    Raises ValueError if the vector is too short.
    """
    return _pieces(program, flat, _Offsets(program, flat))


def forward(program: Program, weights: Sequence[Array], images: Images) -> Logits:
    """The logits, given each instruction's weights; registers are freed as soon as they can be."""
    last_use = {register: n for n, instruction in enumerate(program) for register in instruction.inputs}
    registers = {IMAGE: images}
    for n, (instruction, w) in enumerate(zip(program, weights, strict=True)):
        inputs = [registers[r] for r in instruction.inputs]
        registers[instruction.output] = forward_block(instruction.block, w, *inputs)
        for r in set(instruction.inputs):
            if last_use[r] == n:
                del registers[r]
    return registers[program[-1].output]


def loss_and_gradient(
    program: Program,
    flat: Flat,
    images: Images,
    labels: Int[Array, " batch"],
    dropout_key: Array | None = None,
    label_smoothing: float = 0.0,
) -> Outcome:
    """Runs the network forward and backward.

    Args:
      program, flat, images: as for `logits`. The network computes in the precision of the images; loss, logits and
        gradient are in that of `flat`.
      labels: class of each image.
      dropout_key: a PRNG key, for dropout in the classifier; None leaves dropout out.
      label_smoothing: share of the target that is spread evenly over the classes.
    """
    if dropout_key is None:
        program = without_dropout(program)
    at = _Offsets(program, flat)
    weights = _pieces(program, flat, at)
    registers = {IMAGE: images}
    for instruction, w in zip(program, weights, strict=True):
        registers[instruction.output] = forward_block(
            instruction.block, w, *_inputs(instruction, registers, dropout_key)
        )

    output = program[-1].output
    loss, out, gradient = _loss(registers[output], labels, label_smoothing)
    gradients, pieces = {output: gradient}, []
    for n in reversed(range(len(program))):
        instruction, w = program[n], weights[n]
        del registers[instruction.output]
        g = gradients.pop(instruction.output)
        dw, dxs = pull_back(instruction.block, w, g, _inputs(instruction, registers, dropout_key))
        if instruction.block.shapes:
            pieces.append((dw, n))
        for r, dx in zip(instruction.inputs, dxs, strict=False):
            if r != IMAGE:
                gradients[r] = _add(gradients[r], dx) if r in gradients else dx
    flat_gradient = jnp.zeros_like(flat)
    for dw, n in reversed(pieces):  # in order: a piece covers what is too long of the one before
        flat_gradient = _paste(flat_gradient, dw, *at[n])
    return Outcome(loss, out, flat_gradient)


def accumulate(
    program: Program,
    flat: Flat,
    images: Images,
    labels: Int[Array, " batch"],
    micro_batch_size: int,
    dropout_key: Array | None = None,
    label_smoothing: float = 0.0,
) -> Outcome:
    """As `loss_and_gradient`, a few images at a time, so that memory does not grow with the batch.

    The same loss and gradient for a network without batch norm; batch norm uses the statistics of each micro-batch.
    Dropout draws anew for each.

    Args:
      micro_batch_size: images at a time, a divisor of the batch.
    """
    if micro_batch_size >= len(images):
        return loss_and_gradient(program, flat, images, labels, dropout_key, label_smoothing)
    losses, logits, total = [], [], None
    for number, start in enumerate(range(0, len(images), micro_batch_size)):
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, number)
        part = slice(start, start + micro_batch_size)
        loss, out, gradient = loss_and_gradient(
            program, flat, images[part], labels[part], key, label_smoothing
        )
        losses.append(loss)
        logits.append(out)
        total = gradient if total is None else _add(total, gradient)
    assert total is not None
    return Outcome(jnp.stack(losses).mean(), jnp.concatenate(logits), total / len(losses))


def without_dropout(program: Program) -> Program:
    """The program with every dropout left out: what reads its output reads its input."""
    renamed: dict[int, int] = {}
    kept = []
    for instruction in program:
        inputs = tuple(renamed.get(r, r) for r in instruction.inputs)
        if isinstance(instruction.block, blocks.Dropout):
            renamed[instruction.output] = inputs[0]
        else:
            kept.append(instruction._replace(inputs=inputs))
    return kept


def _inputs(instruction: Instruction, registers: dict[int, Array], dropout_key: Array | None) -> list[Array]:
    inputs = [registers[r] for r in instruction.inputs]
    if isinstance(instruction.block, blocks.Dropout):
        assert dropout_key is not None
        inputs.append(dropout_key)
    return inputs


def pull_back(block: Block, w: Array, g: Array, inputs: list[Array]) -> tuple[Array, Sequence[Array]]:
    """Gradients of a block's piece of the flat vector, and of its inputs."""
    if isinstance(block, blocks.Add):
        return w, (g, g)
    return _call(backward, block, w, g, *inputs)


def forward_block(block: Block, w: Array, *inputs: Array) -> Array:
    """The output of a block, given its piece of the flat vector."""
    return _call(blocks.apply, block, w, *inputs)


def _pieces(program: Program, flat: Flat, at: "_Offsets") -> list[Array]:
    nothing = _cut(flat, *at[0], 0)
    sizes = [blocks.piece_size(i.block) for i in program]
    return [_cut(flat, *at[n], size) if size else nothing for n, size in enumerate(sizes)]


# -- compiled functions: one program per block (or size) and shape of its arrays --------------------------------


def _call(function: Callable, block: Block, *arrays: Array) -> Any:
    """function(block, *arrays), compiled; as it is where a larger program is being traced."""
    if isinstance(arrays[0], jax.core.Tracer):
        return function(block, *arrays)
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore
    shapes = ((x.shape, x.dtype) for x in arrays)
    return _compiled(function, block, precision, arrays[0].sharding, *shapes)(*arrays)


@functools.cache
def _compiled(
    function: Callable,
    block: Block,
    precision: str | None,
    sharding: Any,
    *shapes: tuple[tuple[int, ...], Any],
) -> Callable:
    """Compiled ahead of time, since jit would also keep what it compiled from: five times the memory.

    Arrays are known by shape and type alone: an array's `aval` also tells what mesh made it, pmap's or none. The
    precision is jax's setting, of which the program is made.
    """
    abstract = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in shapes]
    jitted = jax.jit(functools.partial(function, block), compiler_options=options_for(block))
    return jitted.lower(*abstract).compile()


def backward(block: Block, w: Array, g: Array, *inputs: Array) -> tuple[Array, tuple[Array, ...]]:
    """As `pull_back`, not compiled, and for every block alike."""
    maps = [x for x in inputs if jnp.issubdtype(x.dtype, jnp.floating)]
    rest = inputs[len(maps) :]
    _, vjp = jax.vjp(lambda w, *maps: blocks.apply(block, w, *maps, *rest), w, *maps)
    dw, *dxs = vjp(g)
    return dw, tuple(dxs)


@functools.partial(jax.jit, static_argnums=2)
def _loss(out: Logits, labels: Array, label_smoothing: float) -> tuple[Array, Logits, Array]:
    def cross_entropy(out: Logits) -> Array:
        target = (
            jax.nn.one_hot(labels, out.shape[-1]) * (1.0 - label_smoothing) + label_smoothing / out.shape[-1]
        )
        return -(target * jax.nn.log_softmax(out)).sum(-1).mean()

    wide = out.astype(jnp.promote_types(out.dtype, jnp.float32))
    loss, gradient = jax.value_and_grad(cross_entropy)(wide)
    return loss, wide, gradient.astype(out.dtype)


@functools.partial(jax.jit, static_argnums=3)
def _cut(flat: Flat, offsets: Array, n: Array, size: int) -> Array:
    return jax.lax.dynamic_slice(flat.reshape(-1), (_pick(offsets, n),), (size,))


@functools.partial(jax.jit, donate_argnums=0)
def _paste(flat: Flat, piece: Array, offsets: Array, n: Array) -> Flat:
    return jax.lax.dynamic_update_slice(flat.reshape(-1), piece, (_pick(offsets, n),)).reshape(flat.shape)


def _pick(offsets: Array, n: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(offsets, n, keepdims=False)


class _Offsets:
    """Where the pieces of a program's instructions begin: for number n, arrays of which `_pick` makes the place.

    Offsets are sent to the device of the flat vector at once, and the numbers stay there: a number of Python would be
    sent by every start of a program, and that takes a GPU twice as long as the start.

    Raises ValueError if the vector is too short.
    """

    def __init__(self, program: Program, flat: Flat):
        needed = max(i.offset + blocks.piece_size(i.block) for i in program)
        if flat.size < needed:
            raise ValueError(
                f"`flat` has {flat.size} places and the program needs {needed}: see Lowered.flat_size"
            )
        self._offsets: Any = np.zeros(next_size(len(program), _MANY), np.int32)
        self._offsets[: len(program)] = [i.offset for i in program]
        self._device = None
        if not isinstance(flat, jax.core.Tracer) and len(flat.devices()) == 1:
            (self._device,) = flat.devices()
            self._offsets = jax.device_put(self._offsets, self._device)

    def __getitem__(self, n: int) -> tuple[Any, Any]:
        return self._offsets, n if self._device is None else _number(n, self._device)


@functools.cache
def _number(n: int, device: Any) -> Array:
    with jax.ensure_compile_time_eval():  # it is kept, also if a larger program is being traced
        return jax.device_put(np.int32(n), device)


@jax.jit
def _add(x: Array, y: Array) -> Array:
    return x + y
