"""DenseNet [1].

[1] Huang et al., Densely Connected Convolutional Networks, CVPR 2017.
"""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from ghn_jax.targets.layers import Images, Logits, Map, Scope, batch_norm, conv, max_pool


class DenseNet(nn.Module):
    """Dense blocks with a transition between them, which halves both channels and resolution.

    Attributes:
      depths: number of layers in each dense block.
      growth: channels that a layer adds.
      stem: channels of the first convolution.
      num_classes: number of logits.
      image_size: of 32, the first convolution is 3x3 of stride 1, without pooling after it.
    """

    depths: tuple[int, ...]
    growth: int = 32
    stem: int = 64
    num_classes: int = 1000
    image_size: int = 224

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Logits:
        """The logits of normalised images."""
        small, growth, stem, depths = self.image_size == 32, self.growth, self.stem, self.depths

        def features(x: Map) -> Map:
            x = conv(x, stem, "conv0", *((3, 1) if small else (7, 2)))
            x = nn.relu(batch_norm(x, "norm0", train))
            x = x if small else max_pool(x, 3, padding=1)
            for i, depth in enumerate(depths, start=1):
                x = DenseBlock(depth, growth, name=f"denseblock{i}")(x, train)
                if i < len(depths):
                    x = Transition(name=f"transition{i}")(x, train)
            return nn.relu(batch_norm(x, "norm5", train))

        x = Scope(features, name="features")(images)
        return nn.Dense(self.num_classes, name="classifier")(x.mean((1, 2)))


class DenseBlock(nn.Module):
    """Layers each of which reads the block's input and all earlier layers' outputs, side by side."""

    depth: int
    growth: int

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Map:
        """The input and all outputs, side by side."""
        maps = [x]
        for i in range(1, self.depth + 1):
            layer = DenseLayer(self.growth, name=f"denselayer{i}")
            maps.append(layer(jnp.concatenate(maps, axis=-1), train))
        return jnp.concatenate(maps, axis=-1)


class DenseLayer(nn.Module):
    """A 1x1 and a 3x3 convolution, each after batch norm and ReLU."""

    growth: int

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Map:
        """A map of `growth` channels."""
        x = conv(nn.relu(batch_norm(x, "norm1", train)), 4 * self.growth, "conv1")
        return conv(nn.relu(batch_norm(x, "norm2", train)), self.growth, "conv2", 3)


class Transition(nn.Module):
    """Batch norm, ReLU, a 1x1 convolution to half the channels, an average pool to half the resolution."""

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Map:
        """The smaller map."""
        x = conv(nn.relu(batch_norm(x, "norm", train)), x.shape[-1] // 2, "conv")
        return nn.avg_pool(x, (2, 2), (2, 2))


TARGETS = {
    "densenet121": partial(DenseNet, depths=(6, 12, 24, 16)),
    "densenet161": partial(DenseNet, depths=(6, 12, 36, 24), growth=48, stem=96),
    "densenet169": partial(DenseNet, depths=(6, 12, 32, 32)),
    "densenet201": partial(DenseNet, depths=(6, 12, 48, 32)),
}
