"""A residual network for small images, to be named on the command line: `--arch=examples/small_resnet.py:make`."""

import flax.linen as nn


class Block(nn.Module):
    """Two 3x3 convolutions, around which a shortcut leads."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x, train: bool = False):
        """The output map."""
        stride = (self.stride, self.stride)
        y = nn.Conv(self.features, (3, 3), stride, use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(y))
        y = nn.Conv(self.features, (3, 3), use_bias=False)(y)
        y = nn.BatchNorm(use_running_average=not train, momentum=0.9)(y)
        if x.shape != y.shape:
            x = nn.Conv(self.features, (1, 1), stride, use_bias=False)(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.relu(x + y)


class SmallResNet(nn.Module):
    """A 3x3 convolution and three blocks of 16, 32 and 64 channels: eight layers."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, images, train: bool = False):
        """The logits of normalised images."""
        x = nn.Conv(16, (3, 3), use_bias=False)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        for features, stride in ((16, 1), (32, 2), (64, 2)):
            x = Block(features, stride)(x, train)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


def make() -> SmallResNet:
    """The network for ten classes."""
    return SmallResNet()
