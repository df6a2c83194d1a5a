"""SqueezeNet [1].

[1] Iandola et al., SqueezeNet: AlexNet-level accuracy with 50x fewer parameters, arXiv 1602.07360.
"""

from functools import partial
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn

from ghn_jax.targets.layers import Dropout, Images, Logits, Map, conv, max_pool


class SqueezeNet(nn.Module):
    """A convolution, fire modules and max pools; the class layer is a 1x1 convolution before the global pool.

    Attributes:
      layers: hidden channels of each fire module; "pool" for a max pool.
      stem: channels of the first convolution.
      kernel: size of the first convolution, which is not padded.
      num_classes: number of logits.
      image_size: of 32, the first convolution has stride 1, without pooling after it.
    """

    layers: tuple[int | Literal["pool"], ...]
    stem: int
    kernel: int
    num_classes: int = 1000
    image_size: int = 224

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Logits:
        """The logits of normalised images."""
        small = self.image_size == 32
        stride = 1 if small else 2
        x = nn.relu(conv(images, self.stem, "features.0", self.kernel, stride, padding=0, bias=True))
        x = x if small else max_pool(x, 3, ceil=True)
        for place, layer in enumerate(self.layers, start=3):
            x = max_pool(x, 3, ceil=True) if layer == "pool" else Fire(layer, name=f"features.{place}")(x)
        x = conv(Dropout(0.5)(x, train), self.num_classes, "classifier.1", bias=True)
        return nn.relu(x).mean((1, 2))


class Fire(nn.Module):
    """A 1x1 convolution to few channels, then a 1x1 and a 3x3 one to four times as many, side by side."""

    squeeze: int

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """A map of 8 `squeeze` channels."""
        x = nn.relu(conv(x, self.squeeze, "squeeze", bias=True))
        pixels = nn.relu(conv(x, 4 * self.squeeze, "expand1x1", bias=True))
        windows = nn.relu(conv(x, 4 * self.squeeze, "expand3x3", 3, bias=True))
        return jnp.concatenate([pixels, windows], axis=-1)


_1_0 = (16, 16, 32, "pool", 32, 48, 48, 64, "pool", 64)
_1_1 = (16, 16, "pool", 32, 32, "pool", 48, 48, 64, 64)

TARGETS = {
    "squeezenet1_0": partial(SqueezeNet, _1_0, stem=96, kernel=7),
    "squeezenet1_1": partial(SqueezeNet, _1_1, stem=64, kernel=3),
}
