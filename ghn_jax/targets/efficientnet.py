"""EfficientNet [1]: one table of blocks, made wider and deeper.

[1] Tan, Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019.
"""

import math
from functools import partial

from flax import linen as nn

from ghn_jax.targets.inverted_residual import Block, Style, round_channels
from ghn_jax.targets.mobilenet import MobileNet

_STYLE = Style("block", squeeze_activation=nn.silu)
_B0 = [  # expansion, kernel, stride of the first block, features, number of blocks
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
]


def _efficientnet(width: float, depth: float, dropout: float) -> partial[MobileNet]:
    """EfficientNet with `width` times the channels and `depth` times the blocks of B0.

    Without stochastic depth: blocks are never left out in training.
    """
    stem = inputs = round_channels(32 * width)
    blocks = []
    for stage, (expansion, kernel, stride, features, count) in enumerate(_B0, start=1):
        features = round_channels(features * width)
        for i in range(math.ceil(count * depth)):
            hidden = round_channels(expansion * inputs)
            squeeze = max(1, inputs // 4)
            blocks.append(Block((stage, i), kernel, 1 if i else stride, hidden, features, squeeze, nn.silu))
            inputs = features
    return partial(MobileNet, tuple(blocks), _STYLE, nn.silu, stem=stem, top=4 * inputs, dropout=dropout)


TARGETS = {
    "efficientnet_b0": _efficientnet(1.0, 1.0, dropout=0.2),
    "efficientnet_b1": _efficientnet(1.0, 1.1, dropout=0.2),
    "efficientnet_b2": _efficientnet(1.1, 1.2, dropout=0.3),
    "efficientnet_b3": _efficientnet(1.2, 1.4, dropout=0.3),
    "efficientnet_b4": _efficientnet(1.4, 1.8, dropout=0.4),
}
