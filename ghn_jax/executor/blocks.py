"""The blocks that architectures are made of, as data.

A block is a hashable description; called with its weights and inputs it is a pure function of arrays with static
shapes. A few hundred of them make up every network of the training distribution, which is why a training run
stops compiling. Channel sizes here include padding (see `ghn_jax.executor.layouts`): padded channels are zero on entry,
and stay zero since their weights are.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ghn_jax.executor import convolutions, kernels, pools
from ghn_jax.graphs import next_size

Map = Float[Array, "batch height width channel"]
Features = Float[Array, "batch channel"]
Weights = Float[Array, " weight"]
Shape = tuple[int, ...]


def apply(block: "Block", weights: Weights, *inputs: Array) -> Array:
    """The block's output, given its weight vector; what follows the weights is ignored.

    The weights are used in the precision of the inputs.
    """
    weights = weights[: num_weights(block)].astype(inputs[0].dtype)
    return block(_split(weights, block.shapes), *inputs)


@functools.cache
def num_weights(block: "Block") -> int:
    """Length of the block's weight vector."""
    return sum(int(np.prod(shape)) for shape in block.shapes)


@functools.cache
def piece_size(block: "Block") -> int:
    """Length of the piece of a flat vector that is cut out for a block: the next of 0, 64, 128, 256, ..."""
    needed = num_weights(block)
    return next_size(needed, start=64) if needed else 0


def _split(weights: Weights, shapes: tuple[Shape, ...]) -> list[Array]:
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    parts = jnp.split(weights, ends[:-1]) if shapes else []
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


@dataclasses.dataclass(frozen=True, slots=True)
class Convolution:
    """[ReLU,] dense convolution; nothing is differentiated with respect to an image."""

    kernel: tuple[int, int]
    inputs: int
    outputs: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    relu: bool = True
    of_image: bool = False

    @property
    def is_product(self) -> bool:
        """Whether it is a product of two matrices, pixel by pixel."""
        return self.kernel == (1, 1)

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The kernel, HWIO."""
        return ((*self.kernel, self.inputs, self.outputs),)

    def __call__(self, weights: Sequence[Array], x: Map) -> Map:
        """The convolved map."""
        x = jax.lax.stop_gradient(x) if self.of_image else x
        return convolutions.convolution(x, weights[0], self.stride, self.padding, self.relu)


@dataclasses.dataclass(frozen=True, slots=True)
class DepthwiseConvolution:
    """ReLU, depthwise convolution with padding that keeps the size at stride 1."""

    kernel: int
    dilation: int
    stride: int
    channels: int

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The kernel."""
        return ((self.kernel, self.kernel, self.channels),)

    def __call__(self, weights: Sequence[Array], x: Map) -> Map:
        """The convolved map."""
        return convolutions.depthwise(jax.nn.relu(x), weights[0], self.stride, self.dilation)


@dataclasses.dataclass(frozen=True, slots=True)
class FactorizedReduction:
    """ReLU, two 1x1 convolutions of stride 2, the second shifted by one pixel; each makes half the channels."""

    inputs: int
    half: int

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The two 1x1 kernels."""
        return ((self.inputs, self.half),) * 2

    def __call__(self, weights: Sequence[Array], x: Map) -> Map:
        """A map of half the size."""
        x = jax.nn.relu(x)
        views = x[:, ::2, ::2], x[:, 1::2, 1::2]
        return jnp.concatenate(
            [convolutions.pointwise(v, w) for v, w in zip(views, weights, strict=True)], axis=-1
        )


@dataclasses.dataclass(frozen=True, slots=True)
class BatchNorm:
    """Batch norm by the statistics of the batch."""

    channels: int

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Scale and bias."""
        return ((self.channels,),) * 2

    def __call__(self, weights: Sequence[Array], x: Map) -> Map:
        """The normalised map."""
        return kernels.batch_norm(x, *weights)


@dataclasses.dataclass(frozen=True, slots=True)
class Attention:
    """Attention with 8 heads between the pixels of a map, after layer norm, and added to its input.

    Attributes:
      channels: true channels, a multiple of 16. The block's own weights are not padded.
      padded: channels of the map, two halves of true channels, each followed by padding.
    """

    channels: int
    padded: int

    heads: ClassVar[int] = 8

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Layer norm scale, bias; qkv; output weight, bias."""
        c = self.channels
        return ((c,), (c,), (c, 3 * c), (c, c), (c,))

    def __call__(self, weights: Sequence[Array], x: Map) -> Map:
        """A map of the same shape."""
        scale, bias, w_qkv, w_out, b_out = weights
        tokens = _tokens(x, self.channels)
        qkv = kernels.layer_norm(tokens, scale, bias) @ w_qkv
        heads = (x.shape[0], -1, self.heads, self.channels // self.heads)
        q, k, v = (part.reshape(heads) for part in jnp.split(qkv, 3, axis=-1))
        return _with_padding(tokens + kernels.attention(q, k, v, w_out) + b_out, x.shape, self.padded)


@dataclasses.dataclass(frozen=True, slots=True)
class TokenMLP:
    """An MLP on each pixel of a map, after layer norm, and added to its input; attributes as for `Attention`."""

    channels: int
    padded: int

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Layer norm scale, bias; weight, bias; weight, bias."""
        c = self.channels
        return ((c,), (c,), (c, c), (c,), (c, c), (c,))

    def __call__(self, weights: Sequence[Array], x: Map) -> Map:
        """A map of the same shape."""
        scale, bias, w1, b1, w2, b2 = weights
        tokens = _tokens(x, self.channels)
        hidden = jax.nn.gelu(kernels.layer_norm(tokens, scale, bias) @ w1 + b1, approximate=False)
        return _with_padding(tokens + hidden @ w2 + b2, x.shape, self.padded)


def _tokens(x: Map, channels: int) -> Float[Array, "token channel"]:
    """The pixels of all images one after the other, without padding."""
    if x.shape[-1] != channels:
        halves = jnp.split(x, 2, axis=-1)
        x = jnp.concatenate([half[..., : channels // 2] for half in halves], axis=-1)
    return x.reshape(-1, channels)


def _with_padding(tokens: Float[Array, "token channel"], shape: Shape, padded: int) -> Map:
    """A map of this shape, both halves of its channels padded."""
    channels = tokens.shape[-1]
    if channels != padded:
        pad = ((0, 0), (0, (padded - channels) // 2))
        tokens = jnp.concatenate([jnp.pad(half, pad) for half in jnp.split(tokens, 2, axis=-1)], axis=-1)
    return tokens.reshape(shape)


@dataclasses.dataclass(frozen=True, slots=True)
class SqueezeExcite:
    """Scales each channel by a gate computed from the channel means, then subsamples."""

    channels: int
    hidden: int
    stride: int

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Two linear layers, each a weight and a bias."""
        return ((self.channels, self.hidden), (self.hidden,), (self.hidden, self.channels), (self.channels,))

    def __call__(self, weights: Sequence[Array], x: Map) -> Map:
        """The gated map."""
        w1, b1, w2, b2 = weights
        hidden = jax.nn.relu(x.mean((1, 2)) @ w1 + b1)
        gate = jax.nn.hard_swish(hidden @ w2 + b2)
        return (x * gate[:, None, None])[:, :: self.stride, :: self.stride]


@dataclasses.dataclass(frozen=True, slots=True)
class PositionalEncoding:
    """Adds a learned map."""

    size: int
    channels: int

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The encoding of each pixel."""
        return ((self.size, self.size, self.channels),)

    def __call__(self, weights: Sequence[Array], x: Map) -> Map:
        """The sum."""
        return x + weights[0]


@dataclasses.dataclass(frozen=True, slots=True)
class Linear:
    """[ReLU,] a linear layer on flattened features; `classes` cuts the padding off the logits."""

    inputs: int
    outputs: int
    relu: bool = False
    classes: int | None = None

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Weight and bias."""
        return ((self.inputs, self.outputs), (self.outputs,))

    def __call__(self, weights: Sequence[Array], x: Array) -> Features:
        """The transformed features."""
        x = x.reshape(x.shape[0], -1)
        x = jax.nn.relu(x) if self.relu else x
        return (x @ weights[0] + weights[1])[:, : self.classes]


@dataclasses.dataclass(frozen=True, slots=True)
class Pool:
    """3x3 pooling, padding 1."""

    kind: Literal["max", "avg"]
    stride: int
    shapes: ClassVar[tuple[Shape, ...]] = ()

    def __call__(self, weights: Sequence[Array], x: Map) -> Map:
        """The pooled map."""
        pool = pools.max_pool if self.kind == "max" else pools.average_pool
        return pool(x, self.stride)


@dataclasses.dataclass(frozen=True, slots=True)
class Subsample:
    """Keeps every other pixel."""

    shapes: ClassVar[tuple[Shape, ...]] = ()

    def __call__(self, weights: Sequence[Array], x: Map) -> Map:
        """A map of half the size."""
        return x[:, ::2, ::2]


@dataclasses.dataclass(frozen=True, slots=True)
class ReLU:
    """ReLU by itself, where networks other than cells have it after a sum."""

    shapes: ClassVar[tuple[Shape, ...]] = ()

    def __call__(self, weights: Sequence[Array], x: Map) -> Map:
        """The rectified map."""
        return jax.nn.relu(x)


@dataclasses.dataclass(frozen=True, slots=True)
class GlobalAverage:
    """The mean over all pixels."""

    shapes: ClassVar[tuple[Shape, ...]] = ()

    def __call__(self, weights: Sequence[Array], x: Map) -> Features:
        """One vector per image."""
        return x.mean((1, 2))


@dataclasses.dataclass(frozen=True, slots=True)
class Dropout:
    """Dropout with rate 0.5; its second input is a PRNG key. Left out of evaluation."""

    shapes: ClassVar[tuple[Shape, ...]] = ()

    def __call__(self, weights: Sequence[Array], x: Features, key: Array) -> Features:
        """The features, about half of them zero, the others doubled."""
        return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), 2.0 * x, 0.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Add:
    """The sum of two maps."""

    shapes: ClassVar[tuple[Shape, ...]] = ()

    def __call__(self, weights: Sequence[Array], x: Map, y: Map) -> Map:
        """The sum."""
        return x + y


@dataclasses.dataclass(frozen=True, slots=True)
class Concatenate:
    """Maps side by side along the channels; `zeros` marks the places of maps that are zero."""

    zeros: tuple[bool, ...]
    shapes: ClassVar[tuple[Shape, ...]] = ()

    def __call__(self, weights: Sequence[Array], *inputs: Map) -> Map:
        """The concatenated map."""
        rest = iter(inputs)
        zero = jnp.zeros_like(inputs[0])
        return jnp.concatenate([zero if is_zero else next(rest) for is_zero in self.zeros], axis=-1)


Block = (
    Convolution
    | DepthwiseConvolution
    | FactorizedReduction
    | BatchNorm
    | Attention
    | TokenMLP
    | SqueezeExcite
    | PositionalEncoding
    | Linear
    | Pool
    | Subsample
    | ReLU
    | GlobalAverage
    | Dropout
    | Add
    | Concatenate
)
"""Every block has `shapes`, those of its weight tensors, which lie one after the other in its weight vector; it is
called with a list of these tensors and its inputs."""
