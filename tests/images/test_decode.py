"""Decoding, cropping and augmenting images."""

import colorsys
import io

import numpy as np
import pytest
from image_sets import DAMAGED, encoded, jpeg, picture
from PIL import Image, ImageEnhance

from ghn_jax.images import decode
from ghn_jax.images.examples import DamagedImage


@pytest.mark.parametrize(
    ("image", "form"),
    [
        (picture(0, 33, 57), "JPEG"),
        (picture(1, 33, 57).convert("L"), "JPEG"),
        (picture(2, 33, 57).convert("CMYK"), "JPEG"),
        (picture(3, 33, 57), "PNG"),
        (picture(4, 33, 57).convert("RGBA"), "PNG"),
        (picture(5, 33, 57).convert("P"), "GIF"),
    ],
    ids=lambda value: getattr(value, "mode", value),
)
def test_any_format_and_colours_decode_as_pillow_does(image, form):
    data = encoded(image, form)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    pixels = decode.decode(data)
    assert pixels.dtype == np.uint8
    # simplejpeg rounds the product of ink and black the other way.
    np.testing.assert_allclose(pixels.astype(int), expected, rtol=0, atol=1 if image.mode == "CMYK" else 0)
    assert decode.dimensions(data) == (33, 57)


def test_junk_in_a_jpeg_is_forgiven():
    data = jpeg(0)
    extended = data[:-2] + b"\0junk" + data[-2:]
    np.testing.assert_array_equal(decode.decode(extended), decode.decode(data))


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_damaged_image_is_named_as_such(data):
    with pytest.raises(DamagedImage):
        decode.decode(data)
    with pytest.raises(DamagedImage):
        decode.training_crop(data, 32, np.random.default_rng(0))
    with pytest.raises(DamagedImage):
        decode.central_crop(data, 32, 36)


def test_of_a_very_long_image_only_the_middle_is_resized(monkeypatch: pytest.MonkeyPatch):
    sizes = []
    resize = decode._resize
    monkeypatch.setattr(decode, "_resize", lambda *args: (sizes.append(args[-1]), resize(*args))[1])
    pixels = np.zeros((1, 4001, 3), np.uint8)
    pixels[0, 2000] = 255
    crop = decode.central_crop(encoded(Image.fromarray(pixels), "PNG"), 224, 256)
    assert crop.shape == (224, 224, 3)
    assert crop.mean() > 128  # the white pixel in the middle fills most of the crop
    assert sizes == [(17 * 256, 256)]


@pytest.mark.parametrize(
    ("needed", "shape"),
    [
        ((0, 0), (400, 600)),
        ((201, 300), (400, 600)),
        ((200, 300), (200, 300)),
        ((101, 10), (150, 225)),
        ((100, 10), (100, 150)),
        ((7, 7), (50, 75)),
    ],
)
def test_jpeg_is_decoded_at_a_reduced_size_if_that_is_half_or_less(needed, shape):
    image = picture(0, 400, 600)
    pixels = decode.decode(encoded(image, quality=95), needed)
    assert pixels.shape == (*shape, 3)
    expected = np.asarray(image.resize(shape[::-1], Image.Resampling.BOX), np.float32)
    assert np.abs(pixels - expected).mean() < 1.5


@pytest.mark.parametrize(("height", "width"), [(300, 451), (451, 300), (256, 256), (90, 200)])
def test_central_crop_is_the_published_one(height, width):
    image = picture(0, height, width)
    shorter = min(height, width)
    resized = image.resize((256 * width // shorter, 256 * height // shorter), Image.Resampling.BILINEAR)
    left, top = round((resized.width - 224) / 2), round((resized.height - 224) / 2)
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)))
    np.testing.assert_array_equal(decode.central_crop(encoded(image, "PNG"), 224, 256), expected)


@pytest.mark.parametrize(("height", "width", "tolerance"), [(50, 70, 0), (50, 900, 0), (700, 900, 3)])
def test_training_crop_is_the_published_one(height, width, tolerance):
    """Cut, resize, mirror, jitter; large images are decoded at a reduced size, hence nearly the same."""
    data = encoded(picture(0, height, width), quality=95)
    full = Image.open(io.BytesIO(data))
    for seed in range(20):
        crop = decode.training_crop(data, 32, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        top, left, box_height, box_width = decode.random_box(height, width, rng)
        image = full.crop((left, top, left + box_width, top + box_height))
        image = image.resize((32, 32), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
        expected = decode.jitter_colors(pixels[:, ::-1] if rng.random() < 0.5 else pixels, rng).astype(float)
        assert crop.shape == (32, 32, 3)
        assert np.abs(crop - expected).mean() <= tolerance


def test_boxes_have_the_published_areas_and_ratios():
    rng = np.random.default_rng(0)
    boxes = np.array([decode.random_box(500, 500, rng) for _ in range(3000)])
    top, left, height, width = boxes.T
    assert (boxes >= 0).all()
    assert (top + height).max() <= 500
    assert (left + width).max() <= 500
    areas, ratios = height * width / 250_000, width / height
    assert 0.079 < areas.min() < 0.09
    assert areas.max() <= 1
    assert 0.74 < ratios.min() < 0.76
    assert 1.32 < ratios.max() < 1.34
    assert abs(np.median(np.log(ratios))) < 0.03


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(4000, 10, (1993, 0, 13, 10)), (10, 4000, (0, 1993, 10, 13)), (1, 1, (0, 0, 1, 1))],
)
def test_box_of_a_thin_image_is_central(height, width, box):
    assert decode.random_box(height, width, np.random.default_rng(0)) == box


def test_hue_turns():
    red = np.array([200, 20, 20], np.float32)[:, None, None]
    for turn, expected in {0.0: (200, 20, 20), 1 / 3: (20, 200, 20), -1 / 3: (20, 20, 200)}.items():
        np.testing.assert_allclose(decode.turn_hue(red, turn).ravel(), expected, atol=1e-3)


@pytest.mark.parametrize("turn", [-0.2, -0.07, 0.0, 0.11, 0.2])
def test_hue_turns_as_in_the_hsv_space_of_the_standard_library(turn):
    colors = np.random.default_rng(0).integers(0, 256, (3, 4, 50)).astype(np.float32)
    colors[:, 0] = colors[:1, 0]  # greys too
    turned = decode.turn_hue(colors, turn)
    for color, actual in zip(colors.reshape(3, -1).T, turned.reshape(3, -1).T, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*color.astype(float) / 255)
        expected = np.multiply(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value), 255)
        np.testing.assert_allclose(actual, expected, atol=1e-3)


def test_colours_are_jittered_as_by_pillow_up_to_rounding():
    """torchvision's jitter is made of these operations; it rounds down after each."""
    image = picture(0, 60, 60)
    for seed in range(24):
        rng = np.random.default_rng(seed)
        brightness, contrast, saturation = rng.uniform(0.6, 1.4, 3)
        shift = int(rng.uniform(-0.2, 0.2) * 255)
        expected = image
        for change in rng.permutation(4):
            if change == 3:
                hue, *others = expected.convert("HSV").split()
                hue = hue.point([(level + shift) % 256 for level in range(256)])
                expected = Image.merge("HSV", (hue, *others)).convert("RGB")
            else:
                enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[change]
                expected = enhance(expected).enhance((brightness, contrast, saturation)[change])
        jittered = decode.jitter_colors(np.asarray(image), np.random.default_rng(seed))
        difference = jittered.astype(float) - np.asarray(expected)
        assert abs(difference.mean()) < 1.5
        assert np.abs(difference).mean() < 2.5


def test_colours_are_jittered_within_the_published_ranges():
    grey = np.full((8, 8, 3), 100, np.uint8)
    jittered = [decode.jitter_colors(grey, np.random.default_rng(i)) for i in range(300)]
    assert 59 <= np.min(jittered) < 65
    assert 135 < np.max(jittered) <= 140


def test_shifted_crops_are_all_shifts_and_nothing_else():
    image = picture(0, 6, 6)
    pixels = np.asarray(image)
    padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)))
    shifts = [padded[y : y + 6, x : x + 6] for y in range(5) for x in range(5)]
    expected = {crop.tobytes() for shift in shifts for crop in (shift, shift[:, ::-1])}
    data = encoded(image, "PNG")
    crops = {decode.shifted_crop(data, 6, np.random.default_rng(i), pad=2).tobytes() for i in range(600)}
    assert crops == expected
