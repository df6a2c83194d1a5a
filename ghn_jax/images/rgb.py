"""Any image that Pillow opens, as a person would see it, in eight bits of red, green and blue.

Turns that a camera noted are made; what is transparent lies over white; 16 bits and floats keep their range. Of an
animation it is the first picture.
"""

import io
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

from ghn_jax.images.examples import DamagedImage
from ghn_jax.runtime.extras import extra

with extra("train"):
    from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

Pixels = UInt8[np.ndarray, "height width 3"]
T = TypeVar("T")


def read(data: bytes, get: Callable[[Image.Image], T]) -> T:
    """What `get` takes from the image that Pillow opens in `data`; DamagedImage if there is none."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return get(image)
    except UnidentifiedImageError as error:
        raise DamagedImage(f"its {len(data)} bytes are in no known format") from error
    except Exception as error:  # Pillow raises many kinds for damaged data; all mean the same to the caller
        raise DamagedImage(f"{type(error).__name__}: {error}") from error


def dimensions(image: Image.Image) -> tuple[int, int]:
    """Height and width, from the header."""
    sideways = is_transposed(image.getexif().get(ExifTags.Base.Orientation, 1))
    if sideways and image.format != "TIFF":  # of which Pillow gives the size after the turn
        return image.width, image.height
    return image.height, image.width


def pixels(image: Image.Image) -> Pixels:
    """All pixels."""
    upright = ImageOps.exif_transpose(image)
    ranges = _RANGES.get(image.mode)
    if ranges is not None:
        sixteen_bits = image.format in ("PNG", "PPM")  # older versions of Pillow call them I, without ;16
        grey = _eight_bits(np.asarray(upright), _RANGES["I;16"] if sixteen_bits else ranges)
        return np.repeat(grey[..., None], 3, axis=-1)
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright)
    return np.asarray(upright.convert("RGB"))


_RANGES = {
    "I;16": (65535,),
    "I;16B": (65535,),
    "I;16L": (65535,),
    "I": (255, 65535),
    "F": (1, 255, 65535),
}
"""By Pillow's mode, the ranges from 0 that levels of grey may have; more than one where only the levels tell."""


def _eight_bits(levels: np.ndarray, ranges: tuple[int, ...]) -> UInt8[np.ndarray, "height width"]:
    """Scales the smallest range that holds all levels to 0..255; without one, what lies between least and greatest."""
    levels = levels.astype(np.float64)
    least, greatest = float(levels.min()), float(levels.max())
    if not np.isfinite((least, greatest)).all():
        raise DamagedImage("it has levels of grey that are not finite")
    end = next((end for end in ranges if least >= 0 and greatest <= end), None)
    if end is None:
        levels, end = levels - least, greatest - least or 1
    return np.rint(levels * (255 / end)).astype(np.uint8)


# -- turns that a camera noted, for decoders other than Pillow's -------------------------------------------------


def orientation(data: bytes) -> int:
    """The number, 1 to 8, by which a JPEG says how it is to be turned; 1 is not at all."""
    if b"Exif\0\0" not in data:  # far cheaper than to open it
        return 1
    try:
        with Image.open(io.BytesIO(data)) as image:
            turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged header, of which the decoder will tell
        return 1
    return turn if turn in range(1, 9) else 1


def is_transposed(turn: int) -> bool:
    """Whether height and width change places."""
    return turn in range(5, 9)


def turned(pixels: Pixels, turn: int) -> Pixels:
    """An image as its orientation says."""
    if is_transposed(turn):
        pixels = pixels.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
