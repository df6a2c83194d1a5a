"""MobileNetV2 [1], MobileNetV3 [2] and MNASNet [3].

[1] Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018.
[2] Howard et al., Searching for MobileNetV3, ICCV 2019.
[3] Tan et al., MnasNet: Platform-Aware Neural Architecture Search for Mobile, CVPR 2019.
"""

from collections.abc import Iterable
from functools import partial

from flax import linen as nn

from ghn_jax.targets.inverted_residual import Block, InvertedResidual, Style, round_channels
from ghn_jax.targets.layers import Activation, Dropout, Images, Logits, conv_norm


class MobileNet(nn.Module):
    """A 3x3 convolution, inverted residual blocks, a 1x1 convolution, one or two linear layers.

    Attributes:
      blocks: the table of blocks.
      style: of the blocks.
      activation: after the first and the last convolution and the first of two linear layers.
      stem: channels of the first convolution.
      top: channels of the last convolution.
      hidden: features between two linear layers; 0 for one layer.
      dropout: rate before the last linear layer.
      num_classes: number of logits.
      image_size: of 32, all strides in "features.0" to "features.4" are 1.
    """

    blocks: tuple[Block, ...]
    style: Style
    activation: Activation
    stem: int
    top: int
    hidden: int = 0
    dropout: float = 0.2
    num_classes: int = 1000
    image_size: int = 224

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Logits:
        """The logits of normalised images."""
        small, epsilon = self.image_size == 32, self.style.epsilon
        stride = 1 if small else 2
        names = "features.0.0", "features.0.1"
        x = self.activation(conv_norm(images, self.stem, *names, train, 3, stride, epsilon=epsilon))
        for block in self.blocks:
            keep_size = small and block.place[0] < 5
            x = InvertedResidual(block, self.style, keep_size, name=_name("features", block))(x, train)
        place = self.blocks[-1].place[0] + 1
        names = f"features.{place}.0", f"features.{place}.1"
        x = self.activation(conv_norm(x, self.top, *names, train, epsilon=epsilon)).mean((1, 2))
        if self.hidden:
            x = self.activation(nn.Dense(self.hidden, name="classifier.0")(x))
        x = Dropout(self.dropout)(x, train)
        return nn.Dense(self.num_classes, name="classifier.3" if self.hidden else "classifier.1")(x)


class MNASNet(nn.Module):
    """A 3x3, a depthwise and a 1x1 convolution, inverted residual blocks, a 1x1 convolution, a linear layer.

    Attributes:
      blocks: the table of blocks.
      num_classes: number of logits.
      image_size: of 32, the first convolution has stride 1.
    """

    blocks: tuple[Block, ...]
    num_classes: int = 1000
    image_size: int = 224

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Logits:
        """The logits of normalised images."""
        stride = 1 if self.image_size == 32 else 2
        x = nn.relu(conv_norm(images, 32, "layers.0", "layers.1", train, 3, stride))
        x = nn.relu(conv_norm(x, 32, "layers.3", "layers.4", train, 3, groups=32))
        x = conv_norm(x, 16, "layers.6", "layers.7", train)
        for block in self.blocks:
            x = InvertedResidual(block, Style("layers"), name=_name("layers", block))(x, train)
        x = nn.relu(conv_norm(x, 1280, "layers.14", "layers.15", train))
        x = Dropout(0.2)(x.mean((1, 2)), train)
        return nn.Dense(self.num_classes, name="classifier.1")(x)


def _name(container: str, block: Block) -> str:
    return ".".join([container, *map(str, block.place)])


def _v2() -> tuple[Block, ...]:
    rows = [  # expansion, features, number of blocks, stride of the first
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    blocks, inputs = [], 32
    for expansion, features, depth, stride in rows:
        for i in range(depth):
            place, hidden = (len(blocks) + 1,), expansion * inputs
            blocks.append(Block(place, 3, 1 if i else stride, hidden, features, activation=nn.relu6))
            inputs = features
    return tuple(blocks)


def _v3(rows: Iterable[tuple[int, int, int, bool, Activation, int]]) -> tuple[Block, ...]:
    """The blocks of a table of kernel, hidden channels, features, whether there is a gate, activation, stride."""
    return tuple(
        Block((place,), kernel, stride, hidden, features, gate and round_channels(hidden // 4), activation)
        for place, (kernel, hidden, features, gate, activation, stride) in enumerate(rows, start=1)
    )


def _mnasnet() -> tuple[Block, ...]:
    rows = [  # kernel, stride of the first, expansion, features, number of blocks
        (3, 2, 3, 24, 3),
        (5, 2, 3, 40, 3),
        (5, 2, 6, 80, 3),
        (3, 1, 6, 96, 2),
        (5, 2, 6, 192, 4),
        (3, 1, 6, 320, 1),
    ]
    blocks, inputs = [], 16
    for stage, (kernel, stride, expansion, features, depth) in enumerate(rows, start=8):
        for i in range(depth):
            blocks.append(Block((stage, i), kernel, 1 if i else stride, expansion * inputs, features))
            inputs = features
    return tuple(blocks)


_V3_STYLE = Style("block", epsilon=1e-3, gate=nn.hard_sigmoid)
_V3_SMALL = [
    (3, 16, 16, True, nn.relu, 2),
    (3, 72, 24, False, nn.relu, 2),
    (3, 88, 24, False, nn.relu, 1),
    (5, 96, 40, True, nn.hard_swish, 2),
    (5, 240, 40, True, nn.hard_swish, 1),
    (5, 240, 40, True, nn.hard_swish, 1),
    (5, 120, 48, True, nn.hard_swish, 1),
    (5, 144, 48, True, nn.hard_swish, 1),
    (5, 288, 96, True, nn.hard_swish, 2),
    (5, 576, 96, True, nn.hard_swish, 1),
    (5, 576, 96, True, nn.hard_swish, 1),
]
_V3_LARGE = [
    (3, 16, 16, False, nn.relu, 1),
    (3, 64, 24, False, nn.relu, 2),
    (3, 72, 24, False, nn.relu, 1),
    (5, 72, 40, True, nn.relu, 2),
    (5, 120, 40, True, nn.relu, 1),
    (5, 120, 40, True, nn.relu, 1),
    (3, 240, 80, False, nn.hard_swish, 2),
    (3, 200, 80, False, nn.hard_swish, 1),
    (3, 184, 80, False, nn.hard_swish, 1),
    (3, 184, 80, False, nn.hard_swish, 1),
    (3, 480, 112, True, nn.hard_swish, 1),
    (3, 672, 112, True, nn.hard_swish, 1),
    (5, 672, 160, True, nn.hard_swish, 2),
    (5, 960, 160, True, nn.hard_swish, 1),
    (5, 960, 160, True, nn.hard_swish, 1),
]

_v3_net = partial(MobileNet, style=_V3_STYLE, activation=nn.hard_swish, stem=16)

TARGETS = {
    "mobilenet_v2": partial(MobileNet, _v2(), Style("conv"), nn.relu6, stem=32, top=1280),
    "mobilenet_v3_small": partial(_v3_net, blocks=_v3(_V3_SMALL), top=576, hidden=1024),
    "mobilenet_v3_large": partial(_v3_net, blocks=_v3(_V3_LARGE), top=960, hidden=1280),
    "mnasnet1_0": partial(MNASNet, _mnasnet()),
}
