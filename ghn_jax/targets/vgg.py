"""VGG [1] and AlexNet [2]: plain stacks of convolutions and max pools, then three linear layers.

[1] Simonyan, Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015.
[2] Krizhevsky, One weird trick for parallelizing convolutional neural networks, arXiv 1404.5997.
"""

from functools import partial
from typing import NamedTuple

from flax import linen as nn

from ghn_jax.targets.layers import (
    Dropout,
    Images,
    Logits,
    Map,
    adaptive_average_pool,
    batch_norm,
    conv,
    mark,
    max_pool,
)


class Conv(NamedTuple):
    """A convolution with bias, followed by batch norm where the network has it, and ReLU."""

    features: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


class Pool(NamedTuple):
    """A max pool of stride 2."""

    window: int


class PlainNet(nn.Module):
    """Convolutions and max pools, an adaptive average pool, and three linear layers with dropout.

    Attributes:
      layers: the convolutions and max pools.
      norm: whether batch norm follows convolutions.
      grid: height and width of the average-pooled map.
      linears, dropouts: places of the linear layers and of dropout in the classifier.
      num_classes: number of logits.
      image_size: of 32, convolutions have stride 1, and the first `unpooled` layers have no max pools among them.
      unpooled: see `image_size`; counts norms and ReLUs as layers too.
    """

    layers: tuple[Conv | Pool, ...]
    norm: bool = False
    grid: int = 7
    linears: tuple[int, int, int] = (0, 3, 6)
    dropouts: tuple[int, int] = (2, 5)
    num_classes: int = 1000
    image_size: int = 224
    unpooled: int = 10

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Logits:
        """The logits of normalised images."""
        x = mark(adaptive_average_pool(self._convolve(images, train), self.grid), "glob_avg")
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)  # in the order that torchvision's weights expect
        for place, features in zip(self.linears, (4096, 4096, self.num_classes), strict=True):
            if place - 1 in self.dropouts:
                x = Dropout(0.5)(x, train)
            x = nn.Dense(features, name=f"classifier.{place}")(x)
            if place != self.linears[-1]:
                x = nn.relu(x)
        return x

    def _convolve(self, x: Map, train: bool) -> Map:
        small, place = self.image_size == 32, 0
        for layer in self.layers:
            if isinstance(layer, Pool):
                x = x if small and place < self.unpooled else max_pool(x, layer.window)
                place += 1
                continue
            features, kernel, stride, padding = layer
            stride = 1 if small else stride
            x = conv(x, features, f"features.{place}", kernel, stride, padding=padding, bias=True)
            if self.norm:
                x = batch_norm(x, f"features.{place + 1}", train)
            x = nn.relu(x)
            place += 3 if self.norm else 2
        return x


def _vgg(*depths: int, norm: bool) -> partial[PlainNet]:
    """VGG with so many convolutions before each of the five max pools."""
    layers = []
    for depth, features in zip(depths, (64, 128, 256, 512, 512), strict=True):
        layers += [Conv(features)] * depth + [Pool(2)]
    return partial(PlainNet, layers=tuple(layers), norm=norm)


_ALEXNET = (
    Conv(64, kernel=11, stride=4, padding=2),
    Pool(3),
    Conv(192, kernel=5, padding=2),
    Pool(3),
    Conv(384),
    Conv(256),
    Conv(256),
    Pool(3),
)
_VGG_DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}

TARGETS = {
    **{name: _vgg(*depths, norm=False) for name, depths in _VGG_DEPTHS.items()},
    **{f"{name}_bn": _vgg(*depths, norm=True) for name, depths in _VGG_DEPTHS.items()},
    "alexnet": partial(PlainNet, _ALEXNET, grid=6, linears=(1, 4, 6), dropouts=(0, 3), unpooled=3),
}
