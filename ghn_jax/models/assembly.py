"""Makes parameter tensors of any shape from what a GHN decodes.

A GHN decodes at most 64 x 64 channels at each position of a kernel. Larger tensors repeat them, smaller ones
take the first [1, Appendix B.1]. Positions are decoded one by one, in chunks of fixed size, so that no shape
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
from ghn_jax.tracing.builder import Extracted, Owned

_ALIGNMENT = 64


class Piece(NamedTuple):
    """Part of the 64 x 64 channels that a kind of tensor needs, and how many are decoded at a time."""

    inputs: int
    outputs: int
    chunk: int


DENSE = Piece(64, 64, 32)
THIN = Piece(4, 64, 256)  # stems and depthwise kernels
POSITION = Piece(64, 1, 256)  # positional encodings (1, C, H, W), whose channels are decoded as inputs


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
                piece = _piece(extracted, owned)
                kernels.setdefault(piece, {})[owned.node] = owned.shape, fan_in_scale(owned.shape, config)
    pending = [
        (piece, wanted, _decode_kernels(config, weights, nodes, piece, wanted))
        for piece, wanted in kernels.items()
    ]
    vectors, class_biases = _vectors(config, weights, nodes)
    class_weights = {
        node: _class_weight(weights, nodes[node][None], np.array([fan_in_scale(shape, config)], np.float32))[
            0
        ]
        for node, shape in class_shapes.items()
    }
    decoded: dict[int, np.ndarray] = {}
    for piece, wanted, chunks in pending:
        rows, row = np.concatenate([np.asarray(chunk) for chunk in chunks]), 0
        for node, (shape, _) in wanted.items():
            height, width = _kernel(shape, config)
            block = rows[row : row + height * width]
            decoded[node] = block.swapaxes(1, 2) if piece is POSITION else block
            row += height * width
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
) -> list[np.ndarray]:
    """The parameter tensors of a network.

    Args:
      leaves: shapes and dtypes of all of them.
      others: values of those, by index, of which some part is not predicted.
    """
    tensors = _allocate(leaves)
    for index, value in others.items():
        np.copyto(tensors[index], np.asarray(value))
    for owned in extracted.owned:
        target = tensors[owned.leaf.index][(*owned.leaf.place, ...)]
        if owned.view is None:
            target[...] = np.resize(_vector(decoded, extracted, owned), target.shape)
            continue
        kernel = target
        for step in owned.view:
            kernel = step(kernel)
        public = kernel.reshape(*owned.shape, *(1,) * (4 - len(owned.shape)))
        if np.may_share_memory(public, target):
            _fill(public, _source(decoded, extracted, owned), config)
        else:  # no view of the tensor has this order
            _fill(public, _source(decoded, extracted, owned), config)
            target[...] = _undo(public.reshape(owned.shape), owned, target.shape)
    return tensors


def is_class(extracted: Extracted, owned: Owned) -> bool:
    """Whether the classification head decodes a tensor: that of the last layer, if nothing follows it.

    The published code tells classification layers by being last; so SqueezeNet's, before a pool, counts as any other.
    """
    return extracted.ends_in_class and owned.node in extracted.class_nodes


def _piece(extracted: Extracted, owned: Owned) -> Piece:
    if PRIMITIVES[extracted.graph.primitives[owned.node]] == "pos_enc":
        return POSITION
    return THIN if len(owned.shape) == 4 and owned.shape[1] <= THIN.inputs else DENSE


def _kernel(shape: Shape, config: GHNConfig) -> tuple[int, int]:
    """Height and width of the positions that are decoded."""
    height, width = (*shape, 1, 1)[2:4]
    return min(height, config.max_kernel), min(width, config.max_kernel)


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
        height, width = _kernel(shape, config)
        owners += [node] * (height * width)
        places += [y * config.max_kernel + x for y in range(height) for x in range(width)]
        scales += [scale] * (height * width)
    padding = -len(owners) % piece.chunk
    owner = np.pad(np.array(owners, np.int32), (0, padding))
    place = np.pad(np.array(places, np.int32), (0, padding))
    scale = np.pad(np.array(scales, np.float32), (0, padding))
    parts = [slice(start, start + piece.chunk) for start in range(0, len(owner), piece.chunk)]
    return [_positions(piece, weights, nodes, owner[part], place[part], scale[part]) for part in parts]


@functools.partial(jax.jit, static_argnums=0)
def _positions(piece: Piece, weights, nodes, owner, place, scale):
    inputs, outputs = slice(0, piece.inputs), slice(0, piece.outputs)
    return decoder.decode_positions(weights, nodes[owner], place, scale, inputs, outputs)


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
    """Writes a decoded kernel into a tensor (out, in, height, width), repeated or cut to its size."""
    tensor = public.transpose(2, 3, 1, 0)
    height, width, inputs, outputs = tensor.shape
    rows, columns = min(height, config.max_kernel), min(width, config.max_kernel)
    source = source.reshape(rows, columns, *source.shape[1:])[:, :, :inputs, :outputs]
    if rows < height or columns < width:  # larger than any decoded kernel
        source = source[np.arange(height) % rows][:, np.arange(width) % columns]
    step, whole = source.shape[2], source.shape[3]
    wide = np.tile(source, (1, 1, 1, math.ceil(outputs / whole)))[..., :outputs]
    for start in range(0, inputs, step):
        part = tensor[:, :, start : start + step]
        part[...] = wide[:, :, : part.shape[2]]


def _undo(public: np.ndarray, owned: Owned, shape: Shape) -> np.ndarray:
    """A tensor in its model's layout, given its published form."""
    assert owned.view is not None
    shapes = [shape]
    for step in owned.view:
        shapes.append(step(np.broadcast_to(np.float32(0), shapes[-1])).shape)
    for step, before in zip(reversed(owned.view), reversed(shapes[:-1]), strict=True):
        match step.kind:
            case "reshape":
                public = public.reshape(before)
            case "transpose":
                public = public.transpose(np.argsort(step.argument))
            case "rev":
                public = np.flip(public, step.argument)
    return public


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
