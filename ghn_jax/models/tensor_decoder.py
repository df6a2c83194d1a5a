"""What a GHN decodes for the network of any model: a kernel or a vector for each tensor that a node owns.

No shape needs a compilation of its own: what is compiled decodes positions, or codes, in chunks of fixed size.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from ghn_jax.graphs import PRIMITIVES, Shape
from ghn_jax.models import full_rank, low_rank
from ghn_jax.models.config import GHNConfig
from ghn_jax.models.templates import fan_in_scale
from ghn_jax.models.windows import WINDOWS
from ghn_jax.tracing.builder import Extracted, Owned

Weights = dict[str, Array]
Nodes = Float[Array, "node c"]
Kernel = Float[np.ndarray, "position i o"]


class Decoded(NamedTuple):
    """What a GHN decodes for one network.

    Attributes:
      kernel: of a tensor of rank two and more, position by position: as many channels as are decoded for it, no
        position beyond the largest kernel.
      vector: of a vector.
    """

    kernel: Callable[[Owned], Kernel]
    vector: Callable[[Owned], Float[np.ndarray, " c"]]


def decode(config: GHNConfig, weights: Weights, nodes: Nodes, extracted: Extracted) -> Decoded:
    """Decodes all that the nodes of a graph own, from their embeddings.

    Args:
      weights: the decoder's, by public name.
      nodes: node embeddings, padded.
    """
    return _DECODERS[config.decoder](config, weights, nodes, extracted)


def _scale(owned: Owned, config: GHNConfig) -> float:
    """The fan-in normalisation; the public code leaves encodings of tokens alone, whatever their number."""
    assert owned.view is not None
    of_tokens = any(step.kind == "drop" for step in owned.view)
    return 1.0 if of_tokens else fan_in_scale(owned.shape, config)


# -- all channels of a position at once -------------------------------------------------------------------------------

_LEAST_CHANNELS = 64
"""Fewer channels are not decoded alone: that would save little and compile more."""


class Piece(NamedTuple):
    """Part of the channels of a position that a kind of tensor needs, and how many positions are decoded at a time."""

    inputs: int
    outputs: int
    chunk: int


def _full_rank(config: GHNConfig, weights: Weights, nodes: Nodes, extracted: Extracted) -> Decoded:
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
    vectors, class_biases = np.asarray(vectors), np.asarray(class_biases)

    def kernel(owned: Owned) -> Kernel:
        if is_class(extracted, owned):
            return np.asarray(class_weights[owned.node])[None]
        return decoded[owned.node]

    def vector(owned: Owned) -> Float[np.ndarray, " c"]:
        if is_class(extracted, owned):
            return class_biases[owned.node]
        return vectors[owned.node, 0 if owned.role == "weight" else 1]

    return Decoded(kernel, vector)


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


def _decode_kernels(
    config: GHNConfig,
    weights: Weights,
    nodes: Nodes,
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


def _part(piece: Piece, weights: Weights) -> Weights:
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
    return full_rank.decode_positions(weights, nodes[owner], place, scale)


_vectors = jax.jit(full_rank.decode_vectors, static_argnums=0)
_class_weight = jax.jit(full_rank.decode_class_weight)


# -- products of two matrices -----------------------------------------------------------------------------------------

_CODES = 32
"""Nodes whose codes are decoded at a time."""


def _low_rank(config: GHNConfig, weights: Weights, nodes: Nodes, extracted: Extracted) -> Decoded:
    """Codes are decoded at once, a tensor's factors and their product on the host when it is filled."""
    owners = sorted({owned.node for owned in extracted.owned if len(owned.shape) > 1})
    padded = np.pad(np.array(owners, np.int32), (0, -len(owners) % _CODES)).reshape(-1, _CODES)
    chunks = [_codes(weights, nodes, chunk) for chunk in padded]
    vectors = _low_rank_vectors(config, weights, nodes)
    factors = np.asarray(weights[low_rank.FACTORS])
    codes: Mapping[int, np.ndarray] = dict(
        zip(owners, (c for chunk in chunks for c in np.asarray(chunk)), strict=False)
    )
    vectors = np.asarray(vectors)

    def factor(code: np.ndarray, channels: int, size: int) -> np.ndarray:
        return (code @ factors[:, : channels * size]).reshape(len(code), channels, size)

    def kernel(owned: Owned) -> Kernel:
        reach = max(config.channels, config.num_classes) if is_class(extracted, owned) else config.channels
        height, width = (min(size, config.max_kernel) for size in (*owned.shape, 1, 1)[2:4])
        outputs, inputs = min(owned.shape[0], reach), min(owned.shape[1], config.channels)
        a, b = codes[owned.node]
        a = factor(a, outputs, height) * np.float32(_scale(owned, config))
        product = np.tensordot(factor(b, inputs, width), a, (0, 0))  # i, x, o, y
        return product.transpose(3, 1, 0, 2).reshape(height * width, inputs, outputs)

    def vector(owned: Owned) -> Float[np.ndarray, " c"]:
        reach = config.num_classes if is_class(extracted, owned) else config.channels
        return vectors[owned.node, 0 if owned.role == "weight" else 1, :reach]

    return Decoded(kernel, vector)


@jax.jit
def _codes(weights, nodes, owners):
    return low_rank.decode_codes(weights, nodes[owners])


_low_rank_vectors = jax.jit(low_rank.decode_vectors, static_argnums=0)

_DECODERS = {"full_rank": _full_rank, "low_rank": _low_rank}
"""By `GHNConfig.decoder`."""
