"""The layers and operations of which networks are made, in ordinary Flax: readable rather than fast.

Submodules bear the public names of the layers (see `ghn_jax.deepnets.networks.parameters`).

[1] Liu, Simonyan, Yang, DARTS: Differentiable Architecture Search, ICLR 2019.
[2] Hu, Shen, Sun, Squeeze-and-Excitation Networks, CVPR 2018.
[3] Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

Map = Float[Array, "batch height width channel"]
Tokens = Float[Array, "batch token channel"]
Size = int | tuple[int, int]

Norm = Literal["batch", "running", "update"] | None
"""Batch norm after convolutions: by the statistics of the batch; by running ones; by those of the batch, updating the
running ones; or none."""

_EPSILON = 1e-5
_PADDING_1 = ((1, 1), (1, 1))


def operation(op: str, x: Map, features: int, stride: int, norm: Norm, name: str) -> Map:
    """Applies one of `ghn_jax.deepnets.architectures.OPS` other than 'none'; to be called inside a compact module.

    Args:
      features: channels of the result; only convolutions can change them.
      stride: 1, or 2 to halve the resolution.
      norm: the batch norm that convolutions end with.
      name: of the submodule.
    """
    match op:
        case "skip_connect":
            return x if stride == 1 else FactorizedReduction(features, norm, name=name)(x)
        case "max_pool_3x3":
            return max_pool(x, stride)
        case "avg_pool_3x3":
            return average_pool(x, stride)
        case "conv_1x1" | "conv_3x3" | "conv_5x5" | "conv_7x7":
            return ReluConv(features, int(op[-1]), stride, norm, name=name)(x)
        case "conv_7x1_1x7":
            return ReluConvPair(features, 7, stride, norm, name=name)(x)
        case "sep_conv_3x3" | "sep_conv_5x5":
            return SeparableConv(features, int(op[-1]), stride, norm, name=name)(x)
        case "dil_conv_3x3" | "dil_conv_5x5":
            return DilatedConv(features, int(op[-1]), stride, norm, name=name)(x)
        case "cse":
            return subsample(SqueezeExcite(name=name)(x), stride)
        case "msa":
            return subsample(Transformer(name=name)(x), stride)
        case _:
            raise AssertionError(op)


def conv(
    features: int, kernel: Size, name: str, stride: Size = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv:
    """A convolution without bias, padded so that at stride 1 it keeps the size (kernels are odd)."""
    kernel, stride = (size if isinstance(size, tuple) else (size, size) for size in (kernel, stride))
    return nn.Conv(
        features,
        kernel,
        stride,
        padding=[(k - 1) * dilation // 2 for k in kernel],
        kernel_dilation=dilation,
        feature_group_count=groups,
        use_bias=False,
        name=name,
    )


def max_pool(x: Map, stride: int) -> Map:
    """The maximum over 3x3 windows, padding 1."""
    return nn.max_pool(x, (3, 3), (stride, stride), _PADDING_1)  # pyright: ignore[reportArgumentType]


def average_pool(x: Map, stride: int) -> Map:
    """The mean over 3x3 windows, padding 1, of the pixels inside the map."""
    return nn.avg_pool(x, (3, 3), (stride, stride), _PADDING_1, False)  # pyright: ignore[reportArgumentType]


def subsample(x: Map, stride: int) -> Map:
    """Every `stride`-th pixel."""
    return x[:, ::stride, ::stride]


class BatchNorm(nn.Module):
    """Batch norm by the statistics of the batch, in training and evaluation alike."""

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """Normalises each channel of `x` by its mean and biased variance."""
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return (x - mean) * jax.lax.rsqrt(variance + _EPSILON) * scale + bias


def batch_norm(x: Map, norm: Norm, name: str) -> Map:
    """Batch norm, or nothing in networks that have none."""
    if norm is None:
        return x
    if norm == "batch":
        return BatchNorm(name=name)(x)
    running = norm == "running"
    return nn.BatchNorm(use_running_average=running, momentum=0.9, epsilon=_EPSILON, name=name)(x)


class ReluConv(nn.Module):
    """ReLU, convolution, batch norm."""

    features: int
    kernel: int
    stride: int
    norm: Norm

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """The convolved map."""
        x = conv(self.features, self.kernel, "op.1", self.stride)(nn.relu(x))
        return batch_norm(x, self.norm, "op.2")


class ReluConvPair(nn.Module):
    """ReLU, a horizontal and a vertical convolution, batch norm."""

    features: int
    kernel: int
    stride: int
    norm: Norm

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """The convolved map."""
        x = conv(x.shape[-1], (1, self.kernel), "op.1", (1, self.stride))(nn.relu(x))
        x = conv(self.features, (self.kernel, 1), "op.2", (self.stride, 1))(x)
        return batch_norm(x, self.norm, "op.3")


class DilatedConv(nn.Module):
    """ReLU, depthwise convolution of dilation 2, 1x1 convolution, batch norm [1]."""

    features: int
    kernel: int
    stride: int
    norm: Norm

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """The convolved map."""
        names = ("op.1", "op.2", "op.3")
        return _separable(x, self.features, self.kernel, names, self.norm, self.stride, dilation=2)


class SeparableConv(nn.Module):
    """Twice: ReLU, depthwise convolution, 1x1 convolution, batch norm; the first has the stride [1]."""

    features: int
    kernel: int
    stride: int
    norm: Norm

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """The convolved map."""
        x = _separable(x, x.shape[-1], self.kernel, ("op.1", "op.2", "op.3"), self.norm, self.stride)
        return _separable(x, self.features, self.kernel, ("op.5", "op.6", "op.7"), self.norm)


def _separable(
    x: Map,
    features: int,
    kernel: int,
    names: tuple[str, str, str],
    norm: Norm,
    stride: int = 1,
    dilation: int = 1,
) -> Map:
    """ReLU, depthwise convolution, 1x1 convolution, batch norm, with these names."""
    depthwise, pointwise, norm_name = names
    x = conv(x.shape[-1], kernel, depthwise, stride, dilation, groups=x.shape[-1])(nn.relu(x))
    return batch_norm(conv(features, 1, pointwise)(x), norm, norm_name)


class FactorizedReduction(nn.Module):
    """ReLU, two 1x1 convolutions of stride 2, on even and on odd pixels, side by side, batch norm [1]."""

    features: int
    norm: Norm

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """A map of half the size; that of `x` must be even."""
        x = nn.relu(x)
        even = conv(self.features // 2, 1, "conv_1", stride=2)(x)
        odd = conv(self.features // 2, 1, "conv_2", stride=2)(x[:, 1:, 1:])
        return batch_norm(jnp.concatenate([even, odd], axis=-1), self.norm, "bn")


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the means of all [2]; a hard swish, as published."""

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """The gated map."""
        channels = x.shape[-1]
        hidden = nn.relu(nn.Dense(channels // 2, name="fc1")(x.mean((1, 2))))
        gate = nn.hard_swish(nn.Dense(channels, name="fc2")(hidden))
        return x * gate[:, None, None]


class Transformer(nn.Module):
    """A transformer block [3] on the pixels of a map: attention, then an MLP; both pre-norm and residual.

    Attributes:
      heads: number of attention heads.
    """

    heads: int = 8

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """A map of the same shape."""
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        tokens = tokens + self._attend(_layer_norm("ln1")(tokens))
        tokens = tokens + FeedForward(name="ff")(_layer_norm("ln2")(tokens))
        return tokens.reshape(x.shape)

    def _attend(self, tokens: Tokens) -> Tokens:
        channels = tokens.shape[-1]
        qkv = nn.Dense(3 * channels, use_bias=False, name="to_qkv")(tokens)
        q, k, v = (t.reshape(*t.shape[:2], self.heads, -1) for t in jnp.split(qkv, 3, axis=-1))
        similarity = jnp.einsum("bqhc,bkhc->bhqk", q, k) / jnp.sqrt(q.shape[-1])
        mixed = jnp.einsum("bhqk,bkhc->bqhc", nn.softmax(similarity), v)
        return nn.Dense(channels, name="to_out.0")(mixed.reshape(tokens.shape))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them."""

    @nn.compact
    def __call__(self, tokens: Tokens) -> Tokens:
        """Maps each token."""
        channels = tokens.shape[-1]
        hidden = nn.gelu(nn.Dense(channels, name="net.0")(tokens), approximate=False)
        return nn.Dense(channels, name="net.3")(hidden)


def _layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=_EPSILON, use_fast_variance=False, name=name)
