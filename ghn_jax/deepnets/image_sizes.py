"""How networks suit the size of their images: the published choices for 32 and 224 pixels, and what lies between.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021, Section 3.
"""

from typing import NamedTuple

CIFAR_SIZE = 32
IMAGENET_SIZE = 224
IMAGE_SIZES = (CIFAR_SIZE, IMAGENET_SIZE)
"""The published sizes."""

LARGEST = 512
"""Beyond it a step takes minutes."""

THUMBNAIL_SIZE = 16
"""The smallest size: stems and cells halve maps up to four times."""

_STEP = 32
_MOST_PATCHES = 14


class Patches(NamedTuple):
    """How a transformer's stem cuts images: into `count` x `count` patches of `size` x `size` pixels, after padding."""

    size: int
    padding: int
    count: int


def check_image_size(image_size: int) -> None:
    """Raises ValueError for a size that networks are not made for."""
    if image_size != THUMBNAIL_SIZE and (image_size % _STEP or not CIFAR_SIZE <= image_size <= LARGEST):
        nearest = min(LARGEST, max(CIFAR_SIZE, (image_size + _STEP // 2) // _STEP * _STEP))
        raise ValueError(
            f"`image_size` (={image_size}) must be {THUMBNAIL_SIZE}, or a multiple of {_STEP} from {CIFAR_SIZE} to "
            f"{LARGEST}: choose {nearest}, to which images of any size are resized"
        )


def stem_stride(image_size: int) -> int:
    """By how much a stem of convolutions reduces the resolution: 1, 2 or 4, the most that leaves 32 pixels."""
    return next(stride for stride in (4, 2, 1) if image_size // stride >= min(image_size, CIFAR_SIZE))


def patches(image_size: int) -> Patches:
    """The smallest patches that are 14 or fewer to a side and cover the image; 3 pixels for 32, 16 for 224."""
    size = -(-image_size // _MOST_PATCHES)
    count = -(-image_size // size)
    return Patches(size, -(-(count * size - image_size) // 2), count)
