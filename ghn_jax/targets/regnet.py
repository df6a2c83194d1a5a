"""RegNet [1].

[1] Radosavovic et al., Designing Network Design Spaces, CVPR 2020.
"""

from functools import partial

from flax import linen as nn

from ghn_jax.targets.layers import Images, Logits, Map, Scope, SqueezeExcite, conv_norm


class RegNet(nn.Module):
    """Four stages of residual blocks with grouped convolutions, each of half the resolution.

    Attributes:
      depths: number of blocks in each stage.
      widths: channels of each stage.
      group_width: channels in a group of the 3x3 convolutions.
      gated: whether blocks have squeeze-and-excitation gates (RegNetY).
      num_classes: number of logits.
      image_size: of 32, the first convolution has stride 1.
    """

    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]
    group_width: int
    gated: bool
    num_classes: int = 1000
    image_size: int = 224

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Logits:
        """The logits of normalised images."""
        stages = list(enumerate(zip(self.depths, self.widths, strict=True), start=1))
        stride = 1 if self.image_size == 32 else 2
        block = partial(Block, group_width=self.group_width, gated=self.gated)

        def stage(x: Map, number: int, depth: int, width: int) -> Map:
            for i in range(depth):
                x = block(width, stride=1 if i else 2, name=f"block{number}-{i}")(x, train)
            return x

        def trunk(x: Map) -> Map:
            for number, (depth, width) in stages:
                body = partial(stage, number=number, depth=depth, width=width)
                x = Scope(body, name=f"block{number}")(x)
            return x

        x = nn.relu(conv_norm(images, 32, "stem.0", "stem.1", train, 3, stride))
        x = Scope(trunk, name="trunk_output")(x)
        return nn.Dense(self.num_classes, name="fc")(x.mean((1, 2)))


class Block(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions of equal width, around which a shortcut leads."""

    width: int
    group_width: int
    gated: bool
    stride: int

    @nn.compact
    def __call__(self, x: Map, train: bool) -> Map:
        """The output map."""
        width, stride, groups = self.width, self.stride, self.width // self.group_width
        squeeze = round(x.shape[-1] / 4) if self.gated else 0

        def transform(x: Map) -> Map:
            x = nn.relu(conv_norm(x, width, "a.0", "a.1", train))
            x = nn.relu(conv_norm(x, width, "b.0", "b.1", train, 3, stride, groups=groups))
            x = SqueezeExcite(squeeze, name="se")(x) if squeeze else x
            return conv_norm(x, width, "c.0", "c.1", train)

        y = Scope(transform, name="f")(x)
        if stride > 1 or x.shape[-1] != width:
            x = conv_norm(x, width, "proj.0", "proj.1", train, stride=stride)
        return nn.relu(x + y)


TARGETS = {
    "regnet_x_400mf": partial(
        RegNet, depths=(1, 2, 7, 12), widths=(32, 64, 160, 400), group_width=16, gated=False
    ),
    "regnet_y_400mf": partial(
        RegNet, depths=(1, 3, 6, 6), widths=(48, 104, 208, 440), group_width=8, gated=True
    ),
}
