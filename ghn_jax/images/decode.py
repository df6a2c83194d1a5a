"""Images from JPEG or other bytes: decoded, cropped, resized and augmented on the host, as uint8 RGB.

The augmentation is the published one [1], which torchvision does on Pillow images; so does this module, from the same
random distributions. It differs in the decoder, simplejpeg, and in that a JPEG with at least twice the detail that is
wanted is decoded at half its size or less, which the format allows at less than the full cost.

[1] facebookresearch/ppuda, vision/transforms.py.
"""

import math

import numpy as np
from jaxtyping import Float32, UInt8

from ghn_jax.images import rgb
from ghn_jax.runtime.extras import extra

with extra("train"):
    import simplejpeg
    from PIL import Image

RESIZED = 256 / 224
"""Size to which the shorter side is resized for evaluation, as a multiple of the size of the central crop."""

Pixels = UInt8[np.ndarray, "height width 3"]
Planes = Float32[np.ndarray, "3 height width"]


def training_crop(data: bytes, size: int, rng: np.random.Generator, flip: bool = True) -> Pixels:
    """A random part of an image, as `size` x `size` pixels, mirrored or not if `flip`, in random colours.

    Raises DamagedImage.
    """
    height, width = dimensions(data)
    top, left, crop_height, crop_width = random_box(height, width, rng)
    needed = math.ceil(size * height / crop_height), math.ceil(size * width / crop_width)
    pixels = decode(data, needed)
    y, x = pixels.shape[0] / height, pixels.shape[1] / width  # below 1 if decoded at a reduced size
    box = (left * x, top * y, (left + crop_width) * x, (top + crop_height) * y)
    resized = _resize(pixels, box, (size, size))
    if rng.random() < 0.5 and flip:
        resized = resized[:, ::-1]
    return jitter_colors(resized, rng)


def shifted_crop(data: bytes, size: int, rng: np.random.Generator, flip: bool = True, pad: int = 4) -> Pixels:
    """An image of `size` x `size` pixels, shifted by up to `pad` of them into a black border, and mirrored if `flip`
    and chance say so.

    Raises DamagedImage.
    """
    pixels = np.pad(central_crop(data, size, resized=size), ((pad, pad), (pad, pad), (0, 0)))
    top, left = rng.integers(0, 2 * pad + 1, 2)
    pixels = pixels[top : top + size, left : left + size]
    return pixels[:, ::-1] if rng.random() < 0.5 and flip else pixels


def central_crop(data: bytes, size: int, resized: int) -> Pixels:
    """The central `size` x `size` pixels of an image whose shorter side is resized to `resized`.

    Raises DamagedImage.
    """
    pixels = _cut_to_ratio(decode(data))  # at full size, so that accuracies compare with published ones
    height, width = pixels.shape[:2]
    if min(height, width) != resized:
        shorter = min(height, width)
        new_size = resized * width // shorter, resized * height // shorter
        pixels = _resize(pixels, (0, 0, width, height), new_size)
    top, left = (round((side - size) / 2) for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


def decode(data: bytes, needed: tuple[int, int] = (0, 0)) -> Pixels:
    """The pixels of an image, whatever its format and colours; see `rgb`.

    Args:
      needed: height and width that do; a JPEG may then be decoded at 1/2 of its size or less, not below these.
        (0, 0) stands for the full size.

    Raises:
      DamagedImage: there is no whole image in `data`.
    """
    if simplejpeg.is_jpeg(data):
        turn = rgb.orientation(data)
        height, width = reversed(needed) if rgb.is_transposed(turn) else needed
        try:
            # Scales between 1/2 and 1 cost more than the full size: they have no vectorised transform.
            pixels = simplejpeg.decode_jpeg(data, min_height=height, min_width=width, min_factor=2)
            return rgb.turned(pixels, turn)
        except ValueError:
            pass  # a cut file; or junk between markers, which Pillow forgives
    return rgb.read(data, rgb.pixels)


def dimensions(data: bytes) -> tuple[int, int]:
    """Height and width of an image, from its header.

    Raises DamagedImage.
    """
    if simplejpeg.is_jpeg(data):
        try:
            height, width = (int(side) for side in simplejpeg.decode_jpeg_header(data)[:2])
            return (width, height) if rgb.is_transposed(rgb.orientation(data)) else (height, width)
        except ValueError:
            pass
    return rgb.read(data, rgb.dimensions)


def random_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a part with 8 to 100 % of the area and sides in a ratio of 3/4 to 4/3.

    If ten tries give none that fits, it is the largest central part with such sides.
    """
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = rng.integers(0, height - box_height, endpoint=True)
            left = rng.integers(0, width - box_width, endpoint=True)
            return int(top), int(left), box_height, box_width
    box_height = min(height, max(1, round(width / (3 / 4))))
    box_width = min(width, max(1, round(height * (4 / 3))))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def jitter_colors(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Scales brightness, contrast and saturation by 0.6 to 1.4 and turns the hue by up to 0.2, in random order.

    As torchvision, but in float32 from beginning to end, without rounding to whole levels in between.
    """
    brightness, contrast, saturation = rng.uniform(0.6, 1.4, 3).astype(np.float32)
    turn = rng.uniform(-0.2, 0.2)
    colors = np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)
    for change in rng.permutation(4):
        if change == 0:
            colors *= brightness
        elif change == 1:
            colors += (1 / contrast - 1) * _grey(colors).mean()
            colors *= contrast
        elif change == 2:
            colors += (1 / saturation - 1) * _grey(colors)
            colors *= saturation
        else:
            colors = turn_hue(colors, turn)
        np.clip(colors, 0, 255, out=colors)
    return np.stack([*colors.astype(np.uint8)], axis=-1)


def turn_hue(colors: Planes, turn: float) -> Planes:
    """Adds `turn`, as a part of the whole circle, to the hue of every pixel; its value and saturation stay.

    A colour is as far below the largest one as the hue is away from it on the circle: not at all up to 1/6, by the
    whole chroma from 2/6 on. In place as far as possible, since this is the costliest step of all.
    """
    red, green, blue = colors
    largest = np.maximum(np.maximum(red, green), blue)
    chroma = largest - np.minimum(np.minimum(red, green), blue)
    scale = np.float32(1 / 6) / np.maximum(chroma, np.float32(1e-6))
    hue = (red - green) * scale + np.float32(4 / 6)
    np.copyto(hue, (blue - red) * scale + np.float32(2 / 6), where=largest == green)
    np.copyto(hue, (green - blue) * scale, where=largest == red)
    turned = np.empty_like(colors)
    for channel, place in enumerate((0, 2 / 6, 4 / 6)):
        away = hue + np.float32(turn - place)
        away -= np.rint(away)
        np.abs(away, out=away)
        away *= 6
        away -= 1
        np.clip(away, 0, 1, out=away)
        away *= chroma
        np.subtract(largest, away, out=turned[channel])
    return turned


def _cut_to_ratio(pixels: Pixels, ratio: int = 16) -> Pixels:
    """The middle of an image with sides in a ratio above this: the rest, resized, would need memory without bound."""
    longest = ratio * min(pixels.shape[:2])
    top, left = (max(0, side - longest) // 2 for side in pixels.shape[:2])
    return pixels[top : pixels.shape[0] - top, left : pixels.shape[1] - left]


def _grey(colors: Planes) -> Float32[np.ndarray, "height width"]:
    red, green, blue = colors
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _resize(pixels: Pixels, box: tuple[float, float, float, float], new_size: tuple[int, int]) -> Pixels:
    """What is in `box` (left, top, right, bottom), as (width, height) = `new_size`; bilinear, without aliasing."""
    left, top = math.floor(box[0]), math.floor(box[1])
    right, bottom = math.ceil(box[2]), math.ceil(box[3])
    # Cut first: nothing outside the box is to show at its border, and less is copied.
    part = Image.fromarray(np.ascontiguousarray(pixels[top:bottom, left:right]))
    inner = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    return np.asarray(part.resize(new_size, Image.Resampling.BILINEAR, inner))
