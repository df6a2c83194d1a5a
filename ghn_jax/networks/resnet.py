"""ResNet-50 as a plain Flax module, with torchvision's topology and names.

[1] He et al., Deep Residual Learning for Image Recognition, CVPR 2016.
"""

from flax import linen as nn
from jaxtyping import Array, Float

from ghn_jax.networks.ops import BatchNorm, Map, conv, max_pool

_DEPTHS = (3, 4, 6, 3)
_EXPANSION = 4


class ResNet50(nn.Module):
    """ResNet-50 [1], with the stride of a block in its 3x3 convolution.

    Attributes:
      num_classes: number of logits.
      image_size: size of the images; for 32 the stem is a 3x3 convolution of stride 1, without pooling.
    """

    num_classes: int = 10
    image_size: int = 32

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], train: bool = False
    ) -> Float[Array, "batch label"]:
        """The logits of normalised images; `train` makes no difference, since there is no dropout."""
        if self.image_size == 32:
            x = nn.relu(_conv_norm(images, 64, "conv1", "bn1", kernel=3))
        else:
            x = max_pool(nn.relu(_conv_norm(images, 64, "conv1", "bn1", kernel=7, stride=2)), stride=2)
        for stage, depth in enumerate(_DEPTHS):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                x = Bottleneck(64 * 2**stage, stride, block == 0, name=f"layer{stage + 1}.{block}")(x)
        return nn.Dense(self.num_classes, name="fc")(x.mean((1, 2)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around which an identity or a 1x1 convolution leads.

    Attributes:
      width: channels of the 3x3 convolution; the block's output has four times as many.
      stride: of the 3x3 convolution.
      project: whether a convolution fits the input to the output.
    """

    width: int
    stride: int
    project: bool

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """The output map."""
        out = _EXPANSION * self.width
        y = nn.relu(_conv_norm(x, self.width, "conv1", "bn1"))
        y = nn.relu(_conv_norm(y, self.width, "conv2", "bn2", 3, self.stride))
        y = _conv_norm(y, out, "conv3", "bn3")
        if self.project:
            x = _conv_norm(x, out, "downsample.0", "downsample.1", stride=self.stride)
        return nn.relu(x + y)


def _conv_norm(x: Map, features: int, name: str, norm: str, kernel: int = 1, stride: int = 1) -> Map:
    return BatchNorm(name=norm)(conv(features, kernel, name, stride)(x))
