"""Encodes the shape of each node's parameter: one small embedding per dimension.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021, Appendix B.1.
"""

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float, Int

from ghn_jax.graphs import Shape


class ShapeTables(NamedTuple):
    """The sizes that have an embedding of their own; others use the nearest one.

    Attributes:
      channels: of output and input channels, ascending.
      kernels: of kernel height and width, ascending.
    """

    channels: tuple[int, ...]
    kernels: tuple[int, ...]

    @property
    def dummies(self) -> tuple[int, int]:
        """Index, in each table, for nodes without a shape."""
        return len(self.channels), len(self.kernels)


@functools.cache
def shape_tables(num_classes: int, max_kernel: int) -> ShapeTables:
    """The published tables; `max_kernel` is the decoder's kernel size."""
    channels = {1, 3, num_classes, *range(8, 64, 8), *range(64, 4096, 16), *range(4096, 8193, 32)}
    kernels = {*range(1, max(12, max_kernel), 2), 14, 16}
    return ShapeTables(tuple(sorted(channels)), tuple(sorted(kernels)))


@functools.lru_cache(maxsize=65536)
def shape_index(tables: ShapeTables, shape: Shape | None) -> tuple[int, int, int, int]:
    """Indices of (out, in, height, width) into the embedding tables.

    Linear weights (out, in) count as (out, in, 1, 1), vectors (c,) as (c, 1, 1, 1), None as dummies.
    """
    if shape is None:
        channel, kernel = tables.dummies
        return channel, channel, kernel, kernel
    out, inside, height, width = (*shape, 1, 1, 1)[:4]
    channels = [_nearest(tables.channels, 8 if 4 <= c < 8 else c) for c in (out, inside)]
    kernels = [_nearest(tables.kernels, 3 if k == 2 else k) for k in (height, width)]
    return channels[0], channels[1], kernels[0], kernels[1]


def _nearest(table: tuple[int, ...], size: int) -> int:
    """Index of the nearest entry, the smaller of two; the last one for anything larger than the table."""
    return int(np.argmin(np.abs(np.array(table) - size)))


def shape_indices(tables: ShapeTables, shapes: Sequence[Shape | None]) -> Int[np.ndarray, "node 4"]:
    """`shape_index` of every node."""
    return np.array([shape_index(tables, shape) for shape in shapes], np.int32)


class Embedding(nn.Module):
    """A table of vectors.

    Attributes:
      start: its entries start from N(0, 1) as in PyTorch, or from a normal of deviation 1 / sqrt(features), truncated
        at 2, as in transformers.
    """

    size: int
    features: int
    start: Literal["torch", "transformer"] = "torch"

    @nn.compact
    def __call__(self, indices: Int[Array, "..."]) -> Float[Array, "... c"]:
        """The vectors at `indices`."""
        weight = self.param("weight", _START[self.start](self.features), (self.size, self.features))
        return jnp.take(weight, indices, axis=0, mode="clip")


def _truncated_normal(features: int) -> Initializer:
    deviation = features**-0.5
    return lambda *args, **kwargs: (
        deviation * jax.random.truncated_normal(args[0], -2 / deviation, 2 / deviation, *args[1:], **kwargs)
    )


_START = {"torch": lambda features: nn.initializers.normal(1.0), "transformer": _truncated_normal}


class ShapeEncoder(nn.Module):
    """Concatenates the embeddings of the four dimensions, `features` / 4 each."""

    tables: ShapeTables
    features: int
    start: Literal["torch", "transformer"] = "torch"

    @nn.compact
    def __call__(self, indices: Int[Array, "... 4"]) -> Float[Array, "... c"]:
        """The encoding of each shape, given `shape_indices`."""
        width = self.features // 4
        channel = Embedding(len(self.tables.channels) + 1, width, self.start, name="embed_channel")
        spatial = Embedding(len(self.tables.kernels) + 1, width, self.start, name="embed_spatial")
        parts = channel(indices[..., :2]), spatial(indices[..., 2:])
        return jnp.concatenate([p.reshape(*p.shape[:-2], -1) for p in parts], axis=-1)
