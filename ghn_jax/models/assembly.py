"""Makes parameter tensors of any shape from what a GHN decodes.

A GHN decodes a number of channels, 64 x 64 for GHN-2, at each position of a kernel. Larger tensors repeat them, smaller
ones take the first [1, Appendix B.1]. Positions are decoded one by one, in chunks of fixed size, so that no shape
needs a compilation of its own; tensors are filled in place on the host, in whatever layout their model keeps them.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from ghn_jax.graphs import PRIMITIVES, Shape
from ghn_jax.models import decoder
from ghn_jax.models.config import GHNConfig
from ghn_jax.models.templates import fan_in_scale
from ghn_jax.models.windows import WINDOWS
from ghn_jax.tracing.builder import Extracted, Owned
from ghn_jax.tracing.views import invert, positions

_ALIGNMENT = 64

_LEAST_CHANNELS = 64
"""Fewer channels are not decoded alone: that would save little and compile more."""


_CLASS_ROW_STD = 0.02
"""Deviation of the rows of a positional encoding that belong to class tokens: no GHN predicts them, they are drawn."""


class Piece(NamedTuple):
    """Part of the channels of a position that a kind of tensor needs, and how many positions are decoded at a time."""

    inputs: int
    outputs: int
    chunk: int


class Decoded(NamedTuple):
    """What a GHN decodes for one network.

    Attributes:
      kernels: (position, in, out) of each kernel, by node.
      vectors: a weight-like and a bias-like vector for each node.
      class_weights: (in, label) of each classification layer, by node.
      class_biases: a classification bias for each node.
    """

    kernels: Mapping[int, Float[np.ndarray, "position i o"]]
    vectors: Float[np.ndarray, "node 2 c"]
    class_weights: Mapping[int, Float[np.ndarray, "i label"]]
    class_biases: Float[np.ndarray, "node label"]


def decode(
    config: GHNConfig, weights: dict[str, Array], nodes: Float[Array, "node c"], extracted: Extracted
) -> Decoded:
    """Decodes all that the nodes of a graph own, from their embeddings.

    Args:
      weights: the decoder's, by public name.
      nodes: node embeddings, padded.
    """
    kernels: dict[Piece, dict[int, tuple[Shape, float]]] = {}
    class_shapes: dict[int, Shape] = {}
    for owned in extracted.owned:
        if owned.role == "weight" and len(owned.shape) > 1:
            if is_class(extracted, owned):
                class_shapes[owned.node] = owned.shape
            else:
                piece = _piece(extracted, owned, config)
                kernels.setdefault(piece, {})[owned.node] = owned.shape, _scale(owned, config)
    pending = [
        (wanted, _decode_kernels(config, weights, nodes, piece, wanted)) for piece, wanted in kernels.items()
    ]
    vectors, class_biases = _vectors(config, weights, nodes)
    centre = np.array(_positions((1, 1), config), np.int32)
    class_weights = {
        node: _class_weight(
            weights, nodes[node][None], centre, np.array([fan_in_scale(shape, config)], np.float32)
        )[0]
        for node, shape in class_shapes.items()
    }
    decoded: dict[int, np.ndarray] = {}
    for wanted, chunks in pending:
        rows, row = np.concatenate([np.asarray(chunk) for chunk in chunks]), 0
        for node, (shape, _) in wanted.items():
            count = len(_positions(shape, config))
            decoded[node] = rows[row : row + count]
            row += count
    return Decoded(
        decoded,
        np.asarray(vectors),
        {node: np.asarray(weight) for node, weight in class_weights.items()},
        np.asarray(class_biases),
    )


def assemble(
    config: GHNConfig,
    decoded: Decoded,
    extracted: Extracted,
    leaves: Sequence[jax.ShapeDtypeStruct],
    others: Mapping[int, Any],
    seed: int = 0,
) -> list[np.ndarray]:
    """The parameter tensors of a network.

    Args:
      leaves: shapes and dtypes of all of them.
      others: values of those, by index, of which some part is not predicted.
      seed: of what is drawn: the rows of positional encodings that belong to class tokens.
    """
    rng = np.random.default_rng(seed)
    tensors = _allocate(leaves)
    for index, value in others.items():
        np.copyto(tensors[index], np.asarray(value))
    for owned in extracted.owned:
        target = tensors[owned.leaf.index][(*owned.leaf.place, ...)]
        part = target
        for step in owned.view or ():
            if step.kind == "drop":
                class_rows = part[: step.argument[0]]
                class_rows[...] = rng.normal(0.0, _CLASS_ROW_STD, class_rows.shape)
            part = step(part)
        if np.may_share_memory(part, target):
            _write(part, decoded, extracted, owned, config)
        else:  # no view of the tensor has this order
            order = positions(owned.view or (), target.shape)
            written = np.empty(order.shape, target.dtype)
            _write(written, decoded, extracted, owned, config)
            flat = target.reshape(-1)
            flat[order] = written
            target[...] = flat.reshape(target.shape)
    return tensors


def _write(part: np.ndarray, decoded: Decoded, extracted: Extracted, owned: Owned, config: GHNConfig) -> None:
    """Writes what a node decodes into a tensor, such that its layer sees it."""
    if len(owned.shape) == 1:
        vector = _turned(_vector(decoded, extracted, owned), owned)
        part[...] = invert(owned.function, np.resize(vector, part.shape))
        return
    source = _turned(_source(decoded, extracted, owned), owned)
    _fill(part.reshape(*owned.shape, *(1,) * (4 - part.ndim)), source, config)
    if owned.function:
        part[...] = invert(owned.function, part)


def _turned(decoded: np.ndarray, owned: Owned) -> np.ndarray:
    """Output channels, last, that start where those of the layer before ended, and one later after each round."""
    if not owned.turn:
        return decoded
    start = owned.turn * owned.shape[0]
    return np.roll(decoded, -(start + start // decoded.shape[-1]), axis=-1)


def is_class(extracted: Extracted, owned: Owned) -> bool:
    """Whether the classification head decodes a tensor: that of a last layer, if nothing but a sum follows it.

    The published code tells classification layers by being last; so SqueezeNet's, before a pool, counts as any other.
    """
    return extracted.ends_in_class and owned.node in extracted.class_nodes


def _piece(extracted: Extracted, owned: Owned, config: GHNConfig) -> Piece:
    """The smallest of a few that covers what a tensor needs."""
    full = config.channels
    # the weights of a position are copied for each: 64 MB of them at a time
    narrow = max(16, min(256, 2**24 // (4 * config.hidden**2)))
    if PRIMITIVES[extracted.graph.primitives[owned.node]] == "pos_enc":
        return Piece(full, 1, narrow)  # (1, C, H, W): the channels are decoded as inputs
    if len(owned.shape) == 4 and owned.shape[1] <= 4:
        return Piece(4, full, narrow)  # stems and depthwise kernels
    needed = min(full, max(owned.shape[:2]))
    while full // 2 >= max(needed, _LEAST_CHANNELS):
        full //= 2
    return Piece(full, full, 32)


def _positions(shape: Shape, config: GHNConfig) -> list[int]:
    """The positions that are decoded for a tensor, row by row, as y * max_kernel + x."""
    part, size = WINDOWS[config.window].part, config.max_kernel
    rows, columns = (range(size)[part(k, size)] for k in (*shape, 1, 1)[2:4])
    return [y * size + x for y in rows for x in columns]


def _scale(owned: Owned, config: GHNConfig) -> float:
    """The fan-in normalisation; the public code leaves encodings of tokens alone, whatever their number."""
    assert owned.view is not None
    of_tokens = any(step.kind == "drop" for step in owned.view)
    return 1.0 if of_tokens else fan_in_scale(owned.shape, config)


def _decode_kernels(
    config: GHNConfig,
    weights: dict[str, Array],
    nodes: Float[Array, "node c"],
    piece: Piece,
    wanted: Mapping[int, tuple[Shape, float]],
) -> list[Array]:
    """Positions of kernels, one after the other, in chunks."""
    owners, places, scales = [], [], []
    for node, (shape, scale) in wanted.items():
        positions = _positions(shape, config)
        owners += [node] * len(positions)
        places += positions
        scales += [scale] * len(positions)
    padding = -len(owners) % piece.chunk
    owner = np.pad(np.array(owners, np.int32), (0, padding))
    place = np.pad(np.array(places, np.int32), (0, padding))
    scale = np.pad(np.array(scales, np.float32), (0, padding))
    parts = [slice(start, start + piece.chunk) for start in range(0, len(owner), piece.chunk)]
    weights = _part(piece, weights)
    return [_decode_chunk(weights, nodes, owner[part], place[part], scale[part]) for part in parts]


def _part(piece: Piece, weights: dict[str, Array]) -> dict[str, Array]:
    """The decoder's weights, the last layer's cut to the channels of a piece once for all chunks."""
    names = ("decoder.conv.2.weight", "decoder.conv.2.bias")
    if weights[names[0]].shape[1:] == (piece.inputs, piece.outputs):
        return weights
    return weights | {name: _first_channels(piece, weights[name]) for name in names}


@functools.partial(jax.jit, static_argnums=0)
def _first_channels(piece: Piece, weight):
    return weight[..., : piece.inputs, : piece.outputs]


@jax.jit
def _decode_chunk(weights, nodes, owner, place, scale):
    return decoder.decode_positions(weights, nodes[owner], place, scale)


_vectors = jax.jit(decoder.decode_vectors, static_argnums=0)
_class_weight = jax.jit(decoder.decode_class_weight)


def _vector(decoded: Decoded, extracted: Extracted, owned: Owned) -> np.ndarray:
    if is_class(extracted, owned):
        return decoded.class_biases[owned.node]
    return decoded.vectors[owned.node, 0 if owned.role == "weight" else 1]


def _source(decoded: Decoded, extracted: Extracted, owned: Owned) -> Float[np.ndarray, "position i o"]:
    if is_class(extracted, owned):
        return decoded.class_weights[owned.node][None]
    return decoded.kernels[owned.node]


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


def _allocate(leaves: Iterable[jax.ShapeDtypeStruct]) -> list[np.ndarray]:
    """Uninitialised arrays in one piece of memory, aligned so that JAX takes them over without a copy."""
    leaves = list(leaves)
    sizes = [math.ceil(math.prod(x.shape) * x.dtype.itemsize / _ALIGNMENT) * _ALIGNMENT for x in leaves]
    memory = np.empty(sum(sizes) + _ALIGNMENT, np.uint8)
    offset = -memory.ctypes.data % _ALIGNMENT
    tensors = []
    for leaf, size in zip(leaves, sizes, strict=True):
        used = math.prod(leaf.shape) * leaf.dtype.itemsize
        tensors.append(memory[offset : offset + used].view(leaf.dtype).reshape(leaf.shape))
        offset += size
    return tensors
