"""Images of any kind look as they do to a person."""

import io

import numpy as np
import pytest
from image_sets import encoded, picture
from PIL import Image, ImageOps

from ghn_jax.images import decode
from ghn_jax.images.examples import DamagedImage

RAMP = np.linspace(0, 65535, 40 * 48).reshape(40, 48)
GREY = np.rint(RAMP / 257)


def pgm(levels: np.ndarray, greatest: int) -> bytes:
    return f"P5 {levels.shape[1]} {levels.shape[0]} {greatest}\n".encode() + levels.astype(">u2").tobytes()


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(RAMP.astype(np.uint16)), "PNG"),
        encoded(Image.fromarray(RAMP.astype(np.uint16)), "TIFF"),
        encoded(Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
        encoded(Image.fromarray((RAMP / 257).astype(np.int32)), "TIFF"),
        encoded(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"),
        encoded(Image.fromarray((RAMP / 257).astype(np.float32)), "TIFF"),
        encoded(Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
        encoded(Image.fromarray((RAMP / 65535 - 0.5).astype(np.float32)), "TIFF"),
        encoded(Image.fromarray((RAMP * 10).astype(np.float32)), "TIFF"),
        pgm(RAMP, 65535),
        pgm(RAMP / 64, 1023),
    ],
    ids=[
        "png16",
        "tiff16",
        "tiff32",
        "tiff32_8",
        "unit",
        "byte",
        "word",
        "signed",
        "large",
        "pgm16",
        "pgm10",
    ],
)
def test_deep_greys_keep_their_range(data):
    pixels = decode.decode(data)
    assert pixels.dtype == np.uint8 and pixels.shape == (40, 48, 3)
    np.testing.assert_allclose(pixels, np.repeat(GREY[..., None], 3, -1), rtol=0, atol=1)


def test_dark_images_of_16_bits_stay_dark():
    dark = encoded(Image.fromarray(np.full((4, 4), 514, np.uint16)), "PNG")
    assert (decode.decode(dark) == 2).all()
    constant = encoded(Image.fromarray(np.full((4, 4), -3, np.float32)), "TIFF")
    assert (decode.decode(constant) == 0).all()


def test_greys_that_are_no_numbers_are_damage():
    levels = np.ones((4, 4), np.float32)
    levels[1, 2] = np.nan
    with pytest.raises(DamagedImage, match="not finite"):
        decode.decode(encoded(Image.fromarray(levels), "TIFF"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_what_is_transparent_lies_over_white(mode):
    black = Image.new("L", (6, 4), 0)
    if mode in ("RGBA", "LA"):
        image = black.convert(mode)
        image.putalpha(Image.fromarray(np.repeat([[0, 255, 51]], 4, 0).repeat(2, 1).astype(np.uint8)))
        data, expected = encoded(image, "PNG"), [255, 0, 204]
    else:
        pixels = np.repeat([[0, 9, 7]], 4, 0).repeat(2, 1).astype(np.uint8)
        image = Image.fromarray(pixels).convert(mode)
        if mode == "P":
            image = Image.fromarray(pixels, "P")
            image.putpalette([value for level in range(256) for value in (level, level, level)])
        hidden = (0, 0, 0) if mode == "RGB" else 0
        data, expected = encoded(image, "PNG", transparency=hidden), [255, 9, 7]
    pixels = decode.decode(data)
    np.testing.assert_array_equal(
        pixels, np.array(expected, np.uint8).repeat(2)[None, :, None].repeat(4, 0).repeat(3, -1)
    )


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_turns_that_a_camera_noted_are_made(form, turn):
    exif = Image.Exif()
    exif[0x112] = turn
    options = {"lossless": True} if form == "WEBP" else {"quality": 95} if form == "JPEG" else {}
    data = encoded(picture(0, 40, 64), form, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert expected.shape[:2] == ((64, 40) if turn > 4 else (40, 64))
    assert decode.dimensions(data) == expected.shape[:2]
    np.testing.assert_array_equal(decode.decode(data), expected)
    if form == "JPEG":
        reduced = decode.decode(data, (20, 32) if turn < 5 else (32, 20))
        assert reduced.shape == (expected.shape[0] // 2, expected.shape[1] // 2, 3)
        halved = expected.reshape(*reduced.shape[:1], 2, reduced.shape[1], 2, 3).mean((1, 3))
        assert np.abs(reduced - halved).mean() < 2


@pytest.mark.parametrize("form", ["GIF", "AVIF", "JPEG2000", "WEBP"])
def test_other_formats(form):
    image = picture(0, 40, 48)
    pixels = decode.decode(encoded(image, form))
    assert np.abs(pixels.astype(float) - np.asarray(image)).mean() < 8


@pytest.mark.parametrize("crop", [decode.training_crop, decode.shifted_crop])
def test_mirroring_can_be_left_out(crop):
    """The same crops as with it, of which half are mirrored."""
    data = encoded(picture(0, 32, 32), "PNG")
    same = mirrored = 0
    for seed in range(20):
        rngs = [np.random.default_rng(seed) for _ in range(2)]
        plain, maybe = crop(data, 32, rngs[0], flip=False), crop(data, 32, rngs[1])
        same += np.abs(plain.astype(int) - maybe).max() < 3  # colours are changed after mirroring
        mirrored += np.abs(plain[:, ::-1].astype(int) - maybe).max() < 3
    assert same + mirrored == 20 and min(same, mirrored) > 4
