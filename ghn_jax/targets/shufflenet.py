"""ShuffleNetV2 [1].

[1] Ma et al., ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, ECCV 2018.
"""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from ghn_jax.targets.layers import Images, Logits, Map, conv_norm, max_pool


class ShuffleNet(nn.Module):
    """Three stages of blocks of two branches, each of half the resolution.

    Attributes:
      features: channels of each stage.
      depths: number of blocks in each stage.
      num_classes: number of logits.
      image_size: of 32, the first convolution has stride 1, without pooling after it.
    """

    features: tuple[int, int, int]
    depths: tuple[int, int, int] = (4, 8, 4)
    num_classes: int = 1000
    image_size: int = 224

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Logits:
        """The logits of normalised images."""
        small = self.image_size == 32
        x = nn.relu(conv_norm(images, 24, "conv1.0", "conv1.1", train, 3, 1 if small else 2))
        x = x if small else max_pool(x, 3, padding=1)
        for stage, (features, depth) in enumerate(zip(self.features, self.depths, strict=True), start=2):
            for i in range(depth):
                x = TwoBranches(features, reduce=i == 0, name=f"stage{stage}.{i}")(x, train)
        x = nn.relu(conv_norm(x, 1024, "conv5.0", "conv5.1", train))
        return nn.Dense(self.num_classes, name="fc")(x.mean((1, 2)))


class TwoBranches(nn.Module):
    """Half the channels through one branch, half through another, then shuffled.

    Attributes:
      features: channels of the output.
      reduce: whether to halve the resolution; both branches then read all channels, else the first is empty.
    """

    features: int
    reduce: bool

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Map:
        """The output map."""
        half, inputs = self.features // 2, x.shape[-1]
        left, right = (x, x) if self.reduce else jnp.split(x, 2, axis=-1)
        stride = 2 if self.reduce else 1
        if self.reduce:
            left = conv_norm(left, inputs, "branch1.0", "branch1.1", train, 3, 2, groups=inputs)
            left = nn.relu(conv_norm(left, half, "branch1.2", "branch1.3", train))
        right = nn.relu(conv_norm(right, half, "branch2.0", "branch2.1", train))
        right = conv_norm(right, half, "branch2.3", "branch2.4", train, 3, stride, groups=half)
        right = nn.relu(conv_norm(right, half, "branch2.5", "branch2.6", train))
        return _shuffle(jnp.concatenate([left, right], axis=-1))


def _shuffle(x: Map) -> Map:
    """Takes channels from the first and the second half in turn."""
    return x.reshape(*x.shape[:3], 2, -1).swapaxes(3, 4).reshape(x.shape)


TARGETS = {"shufflenet_v2_x1_0": partial(ShuffleNet, features=(116, 232, 464))}
