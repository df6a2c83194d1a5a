"""ConvNeXt [1].

[1] Liu et al., A ConvNet for the 2020s, CVPR 2022.
"""

from functools import partial

from flax import linen as nn

from ghn_jax.targets.layers import Images, Logits, Map, conv, layer_norm


class ConvNeXt(nn.Module):
    """Four stages of depthwise convolutions and MLPs, each of half the resolution and twice the channels.

    Without stochastic depth: blocks are never left out in training.

    Attributes:
      depths: number of blocks in each stage.
      width: channels of the first stage.
      num_classes: number of logits.
      image_size: of 32, the first convolution, which is 4x4 and not padded, has stride 1.
    """

    depths: tuple[int, int, int, int]
    width: int = 96
    num_classes: int = 1000
    image_size: int = 224

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Logits:
        """The logits of normalised images; `train` makes no difference."""
        stride = 1 if self.image_size == 32 else 4
        x = conv(images, self.width, "features.0.0", 4, stride, padding=0, bias=True)
        x = layer_norm(x, "features.0.1")
        for stage, depth in enumerate(self.depths):
            if stage > 0:
                x = layer_norm(x, f"features.{2 * stage}.0")
                features = self.width * 2**stage
                x = conv(x, features, f"features.{2 * stage}.1", 2, 2, padding=0, bias=True)
            for i in range(depth):
                x = Block(name=f"features.{2 * stage + 1}.{i}")(x)
        x = layer_norm(x.mean((1, 2)), "classifier.0")
        return nn.Dense(self.num_classes, name="classifier.2")(x)


class Block(nn.Module):
    """A 7x7 depthwise convolution and an MLP on each pixel, scaled and added to the input."""

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """A map of the same shape."""
        channels = x.shape[-1]
        scale = self.param("layer_scale", nn.initializers.constant(1e-6), (1, 1, channels))
        y = layer_norm(conv(x, channels, "block.0", 7, groups=channels, bias=True), "block.2")
        y = nn.gelu(nn.Dense(4 * channels, name="block.3")(y), approximate=False)
        return x + scale * nn.Dense(channels, name="block.5")(y)


TARGETS = {
    "convnext_tiny": partial(ConvNeXt, depths=(3, 3, 9, 3)),
    "convnext_small": partial(ConvNeXt, depths=(3, 3, 27, 3)),
    "convnext_base": partial(ConvNeXt, depths=(3, 3, 27, 3), width=128),
}
