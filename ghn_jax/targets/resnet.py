"""ResNet [1], ResNeXt [2] and wide ResNet [3].

[1] He et al., Deep Residual Learning for Image Recognition, CVPR 2016.
[2] Xie et al., Aggregated Residual Transformations for Deep Neural Networks, CVPR 2017.
[3] Zagoruyko, Komodakis, Wide Residual Networks, BMVC 2016.
"""

from functools import partial

from flax import linen as nn

from ghn_jax.targets.layers import Images, Logits, Map, conv_norm, max_pool


class ResNet(nn.Module):
    """Four stages of residual blocks, each of half the resolution and twice the channels.

    Attributes:
      depths: number of blocks in each stage.
      bottleneck: whether blocks are bottlenecks.
      width: channels of the 3x3 convolutions of the first stage.
      groups: of the 3x3 convolutions of bottlenecks.
      num_classes: number of logits.
      image_size: of 32, the first convolution is 3x3 of stride 1, without pooling after it.
    """

    depths: tuple[int, int, int, int]
    bottleneck: bool = True
    width: int = 64
    groups: int = 1
    num_classes: int = 1000
    image_size: int = 224

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Logits:
        """The logits of normalised images."""
        if self.image_size == 32:
            x = nn.relu(conv_norm(images, 64, "conv1", "bn1", train, 3))
        else:
            x = nn.relu(conv_norm(images, 64, "conv1", "bn1", train, 7, 2))
            x = max_pool(x, 3, padding=1)
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                name, width = f"layer{stage + 1}.{i}", self.width * 2**stage
                stride = 2 if stage > 0 and i == 0 else 1
                if self.bottleneck:
                    block = Bottleneck(width, 256 * 2**stage, stride, self.groups, name=name)
                else:
                    block = BasicBlock(width, stride, name=name)
                x = block(x, train)
        return nn.Dense(self.num_classes, name="fc")(x.mean((1, 2)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the first with the stride, around which a shortcut leads."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Map:
        """The output map."""
        y = nn.relu(conv_norm(x, self.features, "conv1", "bn1", train, 3, self.stride))
        y = conv_norm(y, self.features, "conv2", "bn2", train, 3)
        return nn.relu(_shortcut(x, self.features, self.stride, train) + y)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the second with the stride, around which a shortcut leads."""

    width: int
    features: int
    stride: int
    groups: int

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Map:
        """The output map."""
        y = nn.relu(conv_norm(x, self.width, "conv1", "bn1", train))
        y = nn.relu(conv_norm(y, self.width, "conv2", "bn2", train, 3, self.stride, groups=self.groups))
        y = conv_norm(y, self.features, "conv3", "bn3", train)
        return nn.relu(_shortcut(x, self.features, self.stride, train) + y)


def _shortcut(x: Map, features: int, stride: int, train: bool) -> Map:
    """`x`, or where a block changes its shape a 1x1 convolution of it."""
    if stride == 1 and x.shape[-1] == features:
        return x
    return conv_norm(x, features, "downsample.0", "downsample.1", train, stride=stride)


TARGETS = {
    "resnet18": partial(ResNet, depths=(2, 2, 2, 2), bottleneck=False),
    "resnet34": partial(ResNet, depths=(3, 4, 6, 3), bottleneck=False),
    "resnet50": partial(ResNet, depths=(3, 4, 6, 3)),
    "resnet101": partial(ResNet, depths=(3, 4, 23, 3)),
    "resnet152": partial(ResNet, depths=(3, 8, 36, 3)),
    "resnext50_32x4d": partial(ResNet, depths=(3, 4, 6, 3), width=128, groups=32),
    "resnext101_32x8d": partial(ResNet, depths=(3, 4, 23, 3), width=256, groups=32),
    "wide_resnet50_2": partial(ResNet, depths=(3, 4, 6, 3), width=128),
    "wide_resnet101_2": partial(ResNet, depths=(3, 4, 23, 3), width=128),
}
