"""The inverted residual block [1] that MobileNets, MNASNet and EfficientNets are made of.

[1] Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018.
"""

from typing import Literal, NamedTuple

from flax import linen as nn

from ghn_jax.targets.layers import Activation, Map, SqueezeExcite, conv_norm


class Block(NamedTuple):
    """A row of a network's table.

    Attributes:
      place: the numbers in the block's name, such as (3, 0) in "features.3.0".
      kernel: size of the depthwise convolution.
      stride: of the depthwise convolution.
      hidden: channels of the depthwise convolution.
      features: channels of the block's output.
      squeeze: hidden channels of the squeeze-and-excitation gate; 0 for a block without.
      activation: after the first two convolutions.
    """

    place: tuple[int, ...]
    kernel: int
    stride: int
    hidden: int
    features: int
    squeeze: int = 0
    activation: Activation = nn.relu


class Style(NamedTuple):
    """In what the families' blocks differ, besides their tables.

    Attributes:
      container: name of the container of a block's layers, which tells how it numbers them.
      epsilon: of batch norm.
      squeeze_activation, gate: the two activations of the squeeze-and-excitation gate.
    """

    container: Literal["conv", "block", "layers"]
    epsilon: float = 1e-5
    squeeze_activation: Activation = nn.relu
    gate: Activation = nn.sigmoid


class InvertedResidual(nn.Module):
    """A 1x1 convolution to more channels, a depthwise one, a gate, a 1x1 convolution to fewer [1].

    The first is left out if the number of channels stays, the gate if `block.squeeze` is 0. The input is added
    to the result where `block` keeps its shape.

    Attributes:
      block: the row of the table.
      style: the family's.
      keep_size: whether the depthwise convolution has stride 1 whatever `block.stride`, which alone decides
        whether the input is added.
    """

    block: Block
    style: Style
    keep_size: bool = False

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Map:
        """The output map."""
        block, style, place, inputs = self.block, self.style, 0, x
        activation, epsilon = block.activation, style.epsilon
        if block.hidden != x.shape[-1]:
            names = _names(style.container, place)
            x = activation(conv_norm(x, block.hidden, *names, train, epsilon=epsilon))
            place += 1
        names, stride = _names(style.container, place), 1 if self.keep_size else block.stride
        x = conv_norm(
            x, block.hidden, *names, train, block.kernel, stride, groups=block.hidden, epsilon=epsilon
        )
        x = activation(x)
        place += 1
        if block.squeeze:
            gate = SqueezeExcite(block.squeeze, style.squeeze_activation, style.gate, name=f"block.{place}")
            x = gate(x)
            place += 1
        names = _names(style.container, place, last=True)
        x = conv_norm(x, block.features, *names, train, epsilon=epsilon)
        return inputs + x if block.stride == 1 and inputs.shape == x.shape else x


def _names(container: str, place: int, last: bool = False) -> tuple[str, str]:
    """The names of the convolution at `place` of a block and of its norm.

    A place is a container of its own in "block", and in "conv" but for the last; "layers" is flat, and counts
    activations.
    """
    if container == "layers":
        return f"layers.{3 * place}", f"layers.{3 * place + 1}"
    if container == "conv" and last:
        return f"conv.{place}", f"conv.{place + 1}"
    return f"{container}.{place}.0", f"{container}.{place}.1"


def round_channels(channels: float) -> int:
    """The multiple of 8 that is nearest, of those that are no more than 10 % smaller."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8
