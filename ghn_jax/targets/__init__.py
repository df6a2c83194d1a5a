"""Named image classifiers, with torchvision's topology and parameter names, to predict parameters for.

The path of a parameter, joined by dots, is its name in torchvision's state_dict, but for the last part: "kernel"
and "scale" are "weight" there (`ghn_jax.deepnets.networks.to_params` and `from_params` convert). Two things differ from
torchvision in training: no blocks are dropped at random (stochastic depth), and running statistics move by a
tenth, with the biased variance, in all families.
"""

import fnmatch

from flax import linen as nn

from ghn_jax.runtime.errors import unknown_name
from ghn_jax.targets import (
    convnext,
    densenet,
    efficientnet,
    mobilenet,
    regnet,
    resnet,
    shufflenet,
    squeezenet,
    swin,
    vgg,
    vit,
)
from ghn_jax.targets.layers import mark

__all__ = ["NAMES", "list_targets", "mark", "target", "variant"]

_TARGETS = {
    **resnet.TARGETS,
    **vgg.TARGETS,
    **densenet.TARGETS,
    **mobilenet.TARGETS,
    **efficientnet.TARGETS,
    **squeezenet.TARGETS,
    **shufflenet.TARGETS,
    **regnet.TARGETS,
    **convnext.TARGETS,
    **vit.TARGETS,
    **swin.TARGETS,
}
_IMAGE_SIZES = (32, 224)

NAMES: tuple[str, ...] = tuple(_TARGETS)


def list_targets(pattern: str = "*") -> list[str]:
    """The names of `NAMES` that match a pattern such as "resnet*"."""
    return fnmatch.filter(NAMES, pattern)


def target(name: str, num_classes: int = 1000, image_size: int = 224) -> nn.Module:
    """The network called `name`, one of `NAMES`.

    Its arguments are `(images, train=False)`, images (batch, height, width, 3) that are normalised, and it returns
    logits (batch, num_classes). With `train`, batch norm uses the statistics of the batch and updates the
    collection "batch_stats", and dropout is active if a "dropout" key is given.

    Args:
      name: as in torchvision.
      num_classes: number of logits.
      image_size: 224, or 32 for a variant that reduces the resolution less: as in the public GHN code, with small
        strides and without max pools in the first layers (each family says how). The variant for 224 takes larger
        images too, except for ViT.

    Raises ValueError for an unknown name, with the nearest ones, or another size.
    """
    if name not in _TARGETS:
        raise unknown_name("arch", name, NAMES)
    if image_size not in _IMAGE_SIZES:
        raise ValueError(
            f"`image_size` (={image_size}) must be one of {_IMAGE_SIZES}: choose 32 for images of about that size, "
            "224 for larger ones"
        )
    return _TARGETS[name](num_classes=num_classes, image_size=image_size)


def variant(image_size: int) -> int:
    """The size, 32 or 224, whose variant suits images of `image_size` pixels: from 64 on the resolution is reduced."""
    return 32 if image_size < 64 else 224
