"""The layers of which target networks are made: ordinary Flax, with torchvision's paddings and constants.

The functions that take a `name` create a submodule of the compact module they are called in.

[1] Hu, Shen, Sun, Squeeze-and-Excitation Networks, CVPR 2018.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from ghn_jax.tracing.rules import MARK

Images = Float[Array, "batch height width 3"]
Map = Float[Array, "batch height width channel"]
Features = Float[Array, "batch channel"]
Logits = Float[Array, "batch label"]
Activation = Callable[[Array], Array]


def mark(x: Array, primitive: str) -> Array:
    """Returns `x`, naming the operation that made it for the graph extractor.

    For operations that a jaxpr does not show as one. The extractor reads the `name` equations of the jaxpr:
    the result of one called "ghn_jax.glob_avg" is that of a `glob_avg` node, whatever the equations before it.

    Args:
      x: the result of the operation.
      primitive: name of a primitive of GHN graphs.
    """
    return checkpoint_name(x, MARK + primitive)


def conv(
    x: Map,
    features: int,
    name: str,
    kernel: int = 1,
    stride: int = 1,
    *,
    groups: int = 1,
    padding: int | None = None,
    bias: bool = False,
) -> Map:
    """A square convolution; its padding is half the kernel if not given, which keeps the size at stride 1."""
    layer = nn.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        padding=kernel // 2 if padding is None else padding,
        feature_group_count=groups,
        use_bias=bias,
        name=name,
    )
    return layer(x)


def batch_norm(x: Map, name: str, train: bool, epsilon: float = 1e-5) -> Map:
    """Batch norm by the statistics of the batch if `train`, else by the running ones (`batch_stats`)."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=epsilon, name=name)(x)


def conv_norm(
    x: Map,
    features: int,
    conv_name: str,
    norm_name: str,
    train: bool,
    kernel: int = 1,
    stride: int = 1,
    *,
    groups: int = 1,
    epsilon: float = 1e-5,
) -> Map:
    """A convolution without bias, then batch norm."""
    x = conv(x, features, conv_name, kernel, stride, groups=groups)
    return batch_norm(x, norm_name, train, epsilon)


def layer_norm(x: Array, name: str) -> Array:
    """Layer norm over the last axis."""
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=name)(x)


class Scope(nn.Module):
    """Applies `body`, whose submodules get this module's name before theirs, as in a torchvision container."""

    body: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """What `body` makes of `x`."""
        return self.body(x)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the means of all [1].

    Attributes:
      hidden: number of channels between the two 1x1 convolutions.
      activation: after the first convolution.
      gate: after the second.
    """

    hidden: int
    activation: Activation = nn.relu
    gate: Activation = nn.sigmoid

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """The gated map."""
        squeezed = x.mean((1, 2), keepdims=True)
        hidden = self.activation(conv(squeezed, self.hidden, "fc1", bias=True))
        return x * self.gate(conv(hidden, x.shape[-1], "fc2", bias=True))


class Dropout(nn.Module):
    """Dropout in training, provided that a "dropout" key is given."""

    rate: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """`x`, or in training a share of it, scaled up."""
        active = train and self.has_rng("dropout")
        return nn.Dropout(self.rate, deterministic=not active)(x)


def max_pool(x: Map, window: int, padding: int = 0, ceil: bool = False) -> Map:
    """The maximum over square windows, stride 2; `ceil` lets a last window reach beyond the map by a pixel."""
    edges = [(padding, padding + (ceil and (size + 2 * padding - window) % 2)) for size in x.shape[1:3]]
    return nn.max_pool(x, (window, window), (2, 2), edges)  # pyright: ignore[reportArgumentType]


def adaptive_average_pool(x: Map, size: int) -> Map:
    """Means over `size` x `size` windows that cover the map, whatever its size; they may overlap or repeat."""
    if x.shape[1:3] == (size, size):
        return x
    rows, columns = (_averaging(length, size) for length in x.shape[1:3])
    return jnp.einsum("bhwc,ih,jw->bijc", x, rows, columns)


def _averaging(length: int, size: int) -> np.ndarray:
    """The matrix (size, length) whose row i averages from floor(i length / size) to ceil((i+1) length / size)."""
    pixel, window = np.arange(length), np.arange(size)[:, None]
    inside = (pixel >= window * length // size) & (pixel < -(-(window + 1) * length // size))
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)
