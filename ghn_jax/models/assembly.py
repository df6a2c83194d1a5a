"""Makes parameter tensors of any shape from what a GHN decodes.

A GHN decodes a number of channels, 64 x 64 for GHN-2, at each position of a kernel (`ghn_jax.models.tensor_decoder`).
Larger tensors repeat them, smaller ones take the first [1, Appendix B.1]. Tensors are filled in place on the host, in
whatever layout their model keeps them.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ghn_jax.models.config import GHNConfig
from ghn_jax.models.tensor_decoder import Decoded
from ghn_jax.models.windows import WINDOWS
from ghn_jax.tracing.builder import Extracted, Owned
from ghn_jax.tracing.views import View, invert, positions

_ALIGNMENT = 64

_CLASS_ROW_STD = 0.02
"""Deviation of the rows of a positional encoding that belong to class tokens: no GHN predicts them, they are drawn."""


def assemble(
    config: GHNConfig,
    decoded: Decoded,
    extracted: Extracted,
    leaves: Sequence[jax.ShapeDtypeStruct],
    others: Mapping[int, Any],
    seed: int = 0,
) -> list[Any]:
    """The parameter tensors of a network: NumPy arrays, and what is no numbers, as PRNG keys, as it was.

    Args:
      leaves: shapes and dtypes of all of them.
      others: values of those, by index, of which some part is not predicted.
      seed: of what is drawn: the rows of positional encodings that belong to class tokens.
    """
    rng = np.random.default_rng(seed)
    tensors: list[Any] = _allocate(leaves)
    for index, value in others.items():
        if _is_numeric(leaves[index]):
            np.copyto(tensors[index], np.asarray(value))
        else:
            tensors[index] = value
    for owned in extracted.owned:
        target = tensors[owned.leaf.index][(*owned.leaf.place, ...)]
        _draw_class_rows(target, owned.view or (), rng)
        part = target
        for step in owned.view or ():
            part = step(part)
        if np.may_share_memory(part, target):
            _write(part, decoded, owned, config)
        else:  # no view of the tensor has this order
            order = positions(owned.view or (), target.shape)
            written = np.empty(order.shape, target.dtype)
            _write(written, decoded, owned, config)
            target.reshape(-1)[order] = written
    return tensors


def _draw_class_rows(target: np.ndarray, view: View, rng: np.random.Generator) -> None:
    """Draws the rows that a view drops."""
    for place, step in enumerate(view):
        if step.kind == "drop":
            rows = positions(view[:place], target.shape)[: step.argument[0]]
            target.reshape(-1)[rows] = rng.normal(0.0, _CLASS_ROW_STD, rows.shape)


def _write(part: np.ndarray, decoded: Decoded, owned: Owned, config: GHNConfig) -> None:
    """Writes what a node decodes into a tensor, such that its layer sees it."""
    if len(owned.shape) == 1:
        vector = _turned(decoded.vector(owned), owned)
        part[...] = invert(owned.function, np.resize(vector, part.shape))
        return
    source = _turned(decoded.kernel(owned), owned)
    _fill(part.reshape(*owned.shape, *(1,) * (4 - part.ndim)), source, config)
    if owned.function:
        part[...] = invert(owned.function, part)


def _turned(decoded: np.ndarray, owned: Owned) -> np.ndarray:
    """Output channels, last, that start where those of the layer before ended, and one later after each round."""
    if not owned.turn:
        return decoded
    start = owned.turn * owned.shape[0]
    return np.roll(decoded, -(start + start // decoded.shape[-1]), axis=-1)


def _fill(public: np.ndarray, source: Float[np.ndarray, "position i o"], config: GHNConfig) -> None:
    """Writes a decoded kernel into a tensor (out, in, height, width), its channels repeated or cut to its size."""
    tensor = public.transpose(2, 3, 1, 0)
    height, width, inputs, outputs = tensor.shape
    size = config.max_kernel
    rows, columns = min(height, size), min(width, size)
    source = source.reshape(rows, columns, *source.shape[1:])[:, :, :inputs, :outputs]
    enlarge = WINDOWS[config.window].enlarge
    if height > size:
        source = np.tensordot(enlarge(height, size), source, 1)
    if width > size:
        source = np.tensordot(enlarge(width, size), source, (1, 1)).swapaxes(0, 1)
    step, whole = source.shape[2], source.shape[3]
    wide = np.tile(source, (1, 1, 1, math.ceil(outputs / whole)))[..., :outputs]
    for start in range(0, inputs, step):
        part = tensor[:, :, start : start + step]
        part[...] = wide[:, :, : part.shape[2]]


def _is_numeric(leaf: jax.ShapeDtypeStruct) -> bool:
    return not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)


def _allocate(leaves: Iterable[jax.ShapeDtypeStruct]) -> list[np.ndarray]:
    """Uninitialised arrays in one piece of memory, aligned so that JAX takes them over without a copy."""
    leaves = [x if _is_numeric(x) else jax.ShapeDtypeStruct((0,), np.uint8) for x in leaves]
    sizes = [math.ceil(math.prod(x.shape) * x.dtype.itemsize / _ALIGNMENT) * _ALIGNMENT for x in leaves]
    memory = np.empty(sum(sizes) + _ALIGNMENT, np.uint8)
    offset = -memory.ctypes.data % _ALIGNMENT
    tensors = []
    for leaf, size in zip(leaves, sizes, strict=True):
        used = math.prod(leaf.shape) * leaf.dtype.itemsize
        tensors.append(memory[offset : offset + used].view(leaf.dtype).reshape(leaf.shape))
        offset += size
    return tensors
