"""The size of a set's images, of which networks for them follow."""

import statistics
from typing import NamedTuple

import numpy as np

from ghn_jax.images import rgb
from ghn_jax.images.examples import DamagedImage, Source
from ghn_jax.runtime.extras import extra

with extra("train"):
    from PIL import Image

LARGE = 224
"""The size for larger images, that of ImageNet."""

THUMBNAIL = 64
"""Up to this size the whole of an image is shown in training, since parts of it say little."""

_STEP = 32
_SAMPLE = 100
_GREY = ("L", "1", "I", "F")

Shape = tuple[int | None, int | None, int]


class Measured(NamedTuple):
    """What images have in common.

    Attributes:
      shape: height, width and colours of all; None, None and 3 where sizes differ, 3 colours where some are grey.
      shorter: median of the shorter sides, in pixels.
    """

    shape: Shape
    shorter: int


def measure(source: Source, stored: Shape) -> Measured:
    """Measures images, by the headers of a hundred, spread over the source, unless it was `stored` with them.

    Raises DamagedImage if none of them can be read.
    """
    height, width, _ = stored
    if height and width:
        return Measured(stored, min(height, width))
    places = np.unique(np.linspace(0, len(source) - 1, _SAMPLE).astype(int)).tolist()
    shapes, damage = [], None
    for place in places:
        try:
            shapes.append(rgb.read(source[place].data, _shape))
        except DamagedImage as error:
            damage = damage or error
    if not shapes:
        raise DamagedImage(
            f"none of {len(places)} images can be read ({damage}): is the disk there, the data set whole?"
        )
    sizes, colors = {shape[:2] for shape in shapes}, {shape[2] for shape in shapes}
    shape = (None, None, 3) if len(sizes) > 1 else (*shapes[0][:2], max(colors))
    return Measured(shape, round(statistics.median(min(height, width) for height, width, _ in shapes)))


def natural_size(shorter: int) -> int:
    """The multiple of 32 pixels that is nearest to the shorter side of images, from 32 to 224."""
    return min(LARGE, max(_STEP, (shorter + _STEP // 2) // _STEP * _STEP))


def _shape(image: Image.Image) -> tuple[int, int, int]:
    return *rgb.dimensions(image), 1 if image.mode.split(";")[0] in _GREY else 3
