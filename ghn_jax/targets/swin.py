"""Swin transformer [1].

[1] Liu et al., Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, ICCV 2021.
"""

import math
from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from ghn_jax.targets.layers import Images, Logits, Map, conv

WINDOW = 7
"""Height and width of the windows within which tokens attend to each other."""
_HIDDEN = -100.0  # added to the scores of tokens that are in one window, but not neighbours


class Swin(nn.Module):
    """Four stages of transformer blocks on windows of a map, each of half the resolution and twice the channels.

    Without stochastic depth: blocks are never left out in training.

    Attributes:
      depths: number of blocks in each stage.
      heads: attention heads in each stage.
      width: channels of the first stage.
      num_classes: number of logits.
      image_size: of 32, the 4x4 patches have stride 2.
    """

    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    width: int = 96
    num_classes: int = 1000
    image_size: int = 224

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Logits:
        """The logits of normalised images; `train` makes no difference."""
        stride, padding = (2, 1) if self.image_size == 32 else (4, 0)
        x = conv(images, self.width, "features.0.0", 4, stride, padding=padding, bias=True)
        x = _norm("features.0.2")(x)
        for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            if stage > 0:
                x = Merging(name=f"features.{2 * stage}")(x)
            for i in range(depth):
                shift = WINDOW // 2 if i % 2 else 0
                x = Block(heads, shift, name=f"features.{2 * stage + 1}.{i}")(x)
        return nn.Dense(self.num_classes, name="head")(_norm("norm")(x).mean((1, 2)))


class Merging(nn.Module):
    """Makes one token of twice the channels of each 2x2 tokens."""

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """The smaller map."""
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        joined = _norm("norm")(jnp.concatenate(parts, axis=-1))
        return nn.Dense(2 * x.shape[-1], use_bias=False, name="reduction")(joined)


class Block(nn.Module):
    """Attention within windows, then an MLP; both after layer norm, and added to their input.

    Attributes:
      heads: of attention.
      shift: by how many pixels the windows are moved.
    """

    heads: int
    shift: int

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """A map of the same shape."""
        channels = x.shape[-1]
        x = x + WindowAttention(self.heads, self.shift, name="attn")(_norm("norm1")(x))
        y = nn.Dense(4 * channels, name="mlp.0")(_norm("norm2")(x))
        return x + nn.Dense(channels, name="mlp.3")(nn.gelu(y, approximate=False))


class WindowAttention(nn.Module):
    """softmax(q k^T / sqrt(d) + b) v within windows, where b depends on how far two tokens are apart.

    Attributes:
      heads: of attention.
      shift: by how many pixels the windows are moved; along an axis with a single window, none.
    """

    heads: int
    shift: int

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """A map of the same shape."""
        _, height, width, channels = x.shape
        x = jnp.pad(x, ((0, 0), (0, -height % WINDOW), (0, -width % WINDOW), (0, 0)))
        size = x.shape[1], x.shape[2]
        shift = tuple(0 if length <= WINDOW else self.shift for length in size)
        tokens = _split(jnp.roll(x, [-s for s in shift], (1, 2)))  # (batch, window, token, channel)
        qkv = nn.Dense(3 * channels, name="qkv")(tokens)
        q, k, v = (part.reshape(*tokens.shape[:3], self.heads, -1) for part in jnp.split(qkv, 3, axis=-1))
        scores = jnp.einsum("bwqhc,bwkhc->bwhqk", q, k) / math.sqrt(channels // self.heads) + self._bias()
        if any(shift):
            scores += _between_regions(size, shift)
        mixed = jnp.einsum("bwhqk,bwkhc->bwqhc", nn.softmax(scores), v).reshape(tokens.shape)
        y = _join(nn.Dense(channels, name="proj")(mixed), size)
        return jnp.roll(y, shift, (1, 2))[:, :height, :width]

    def _bias(self) -> Float[Array, "head token token"]:
        size = ((2 * WINDOW - 1) ** 2, self.heads)
        table = self.param("relative_position_bias_table", nn.initializers.truncated_normal(0.02), size)
        return table[_relative_positions()].transpose(2, 0, 1)


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)


def _split(x: Map) -> Float[Array, "batch window token channel"]:
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // WINDOW, WINDOW, width // WINDOW, WINDOW, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, WINDOW * WINDOW, channels)


def _join(tokens: Float[Array, "batch window token channel"], size: tuple[int, int]) -> Map:
    """The inverse of `_split`."""
    height, width = size
    shape = (len(tokens), height // WINDOW, width // WINDOW, WINDOW, WINDOW, tokens.shape[-1])
    return tokens.reshape(shape).swapaxes(2, 3).reshape(len(tokens), height, width, -1)


def _relative_positions() -> Int[np.ndarray, "token token"]:
    """Row of the table of biases for each two tokens of a window."""
    place = np.indices((WINDOW, WINDOW)).reshape(2, -1)
    apart = place[:, :, None] - place[:, None] + WINDOW - 1
    return apart[0] * (2 * WINDOW - 1) + apart[1]


def _between_regions(
    size: tuple[int, int], shift: tuple[int, ...]
) -> Float[np.ndarray, "window 1 token token"]:
    """Hides from each other the tokens that are neighbours only since the map was rolled."""
    region = np.zeros(size, np.float32)
    for axis, (length, moved) in enumerate(zip(size, shift, strict=True)):
        bounds = [length - WINDOW, length - moved] if moved else []
        along = np.searchsorted(bounds, np.arange(length), side="right")
        region += 3**axis * (along[:, None] if axis == 0 else along)
    rows, columns = (length // WINDOW for length in size)
    own = region.reshape(rows, WINDOW, columns, WINDOW).swapaxes(1, 2).reshape(rows * columns, -1)
    return np.where(own[:, None, None, :] == own[:, None, :, None], 0.0, _HIDDEN).astype(np.float32)


TARGETS = {
    "swin_t": partial(Swin, depths=(2, 2, 6, 2)),
    "swin_s": partial(Swin, depths=(2, 2, 18, 2)),
    "swin_b": partial(Swin, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), width=128),
}
