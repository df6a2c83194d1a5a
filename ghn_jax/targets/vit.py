"""Vision transformer [1].

[1] Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021.
"""

import math
from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ghn_jax.targets.layers import Images, Logits, Scope, conv, layer_norm

Tokens = Float[Array, "batch token channel"]


class ViT(nn.Module):
    """Patches and a class token through transformer blocks; the class token gives the logits.

    The positional embedding fits `image_size` alone: other images raise ValueError.

    Attributes:
      patch: height and width of a patch of images of 224.
      depth: number of transformer blocks.
      heads: number of attention heads.
      width: channels of a token.
      num_classes: number of logits.
      image_size: of 32, patches are 4x4.
    """

    patch: int
    depth: int = 12
    heads: int = 12
    width: int = 768
    num_classes: int = 1000
    image_size: int = 224

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Logits:
        """The logits of normalised images; `train` makes no difference."""
        if images.shape[1:3] != (self.image_size, self.image_size):
            raise ValueError(
                f"`images` of shape {images.shape} do not fit `image_size` (={self.image_size}): "
                "resize them, since the positional embedding of a ViT is for one size"
            )
        patch = 4 if self.image_size == 32 else self.patch
        x = conv(images, self.width, "conv_proj", patch, patch, padding=0, bias=True)
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("class_token", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], axis=1)
        x = Encoder(self.depth, self.heads, name="encoder")(x)
        classes = self.num_classes
        return Scope(lambda token: nn.Dense(classes, name="head")(token), name="heads")(x[:, 0])


class Encoder(nn.Module):
    """Adds the positional embedding and applies transformer blocks, then layer norm."""

    depth: int
    heads: int

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        """The encoded tokens."""
        depth, heads = self.depth, self.heads

        def layers(x: Tokens) -> Tokens:
            for i in range(depth):
                x = Block(heads, name=f"encoder_layer_{i}")(x)
            return x

        positions = self.param("pos_embedding", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        return layer_norm(Scope(layers, name="layers")(x + positions), "ln")


class Block(nn.Module):
    """Attention, then an MLP; both after layer norm, and added to their input."""

    heads: int

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        """Tokens of the same shape."""
        channels = x.shape[-1]
        x = x + SelfAttention(self.heads, name="self_attention")(layer_norm(x, "ln_1"))
        y = nn.Dense(4 * channels, name="mlp.0")(layer_norm(x, "ln_2"))
        return x + nn.Dense(channels, name="mlp.3")(nn.gelu(y, approximate=False))


class SelfAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v in each of the heads, whose queries and keys have d channels."""

    heads: int

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        """Tokens of the same shape."""
        qkv = nn.Dense(3 * x.shape[-1], name="in_proj")(x)
        q, k, v = (part.reshape(*x.shape[:2], self.heads, -1) for part in jnp.split(qkv, 3, axis=-1))
        similarity = jnp.einsum("bqhc,bkhc->bhqk", q, k) / math.sqrt(q.shape[-1])
        mixed = jnp.einsum("bhqk,bkhc->bqhc", nn.softmax(similarity), v)
        return nn.Dense(x.shape[-1], name="out_proj")(mixed.reshape(x.shape))


TARGETS = {"vit_b_16": partial(ViT, patch=16), "vit_b_32": partial(ViT, patch=32)}
