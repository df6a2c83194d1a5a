"""Streamed image sets: opening them, decoding and augmenting their images, and batches that survive restarts."""

import colorsys
import importlib.util
import io
import json
import multiprocessing
import shutil
import sys
import tarfile
from collections import Counter, namedtuple
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image, ImageEnhance
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from datasets import decode, imagenet, sources, stream
from datasets.sources import DamagedImage, open_dataset


def picture(seed: int, height: int, width: int) -> Image.Image:
    """A smooth random picture, since noise does not survive compression."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def jpeg(seed: int, height: int = 40, width: int = 48) -> bytes:
    return encoded(picture(seed, height, width))


TRUNCATED = jpeg(0, 200, 200)[:-900]
DAMAGED = {
    "truncated": TRUNCATED,
    "garbage": b"\xff\xd8\xff" + b"garbage" * 50,
    "text": b"hello",
    "empty": b"",
}

Images = list[tuple[bytes, int]]


def numbered(num: int, **replaced: bytes) -> Images:
    """As many images, each its own class; `replaced` gives other content, as i3=b"..." for image 3."""
    return [(replaced.get(f"i{index}", jpeg(index)), index) for index in range(num)]


def write_tfds(
    data_dir: Path,
    splits: dict[str, Images],
    num_classes: int,
    name: str = "imagenet2012/5.1.0",
    stored_name: str | None = None,
    shape: tuple[int | None, int | None, int] = (None, None, 3),
    file_format: str = "array_record",
) -> Path:
    """Writes a TFDS data set without TensorFlow; returns its directory."""
    directory = data_dir / name
    directory.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=shape, encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=num_classes),
        }
    )
    specs: Any = features.get_serialized_info()
    serializer = ExampleSerializer(specs)
    *path, version = (stored_name or name).split("/")
    for split, examples in splits.items():
        shard = directory / f"{path[0]}-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(shard), "group_size:1")
        for data, label in examples:
            example: Any = {"image": data, "label": label}
            writer.write(serializer.serialize_example(example))
        writer.close()
    features.save_config(str(directory))
    info = {
        "name": path[0],
        "configName": "/".join(path[1:]),
        "version": version,
        "fileFormat": file_format,
        "supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}},
        "splits": [
            {
                "name": split,
                "shardLengths": [str(len(examples))] if examples else [],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
            for split, examples in splits.items()
        ],
    }
    (directory / "dataset_info.json").write_text(json.dumps(info))
    return directory


def write_folder(path: Path, splits: dict[str, dict[str, int]]) -> None:
    """Writes as many images of each class as given."""
    for split, classes in splits.items():
        for number, (name, num) in enumerate(classes.items()):
            (path / split / name).mkdir(parents=True)
            for index in range(num):
                (path / split / name / f"{index:03}.jpg").write_bytes(jpeg(number))


def examples(source: sources.Source) -> list[sources.Example]:
    return [source[index] for index in range(len(source))]


def labels(source: sources.Source) -> list[int]:
    return [example.label for example in examples(source)]


# -- decoding ------------------------------------------------------------------------------------------------


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


# -- opening -------------------------------------------------------------------------------------------------


def test_imagenet_holds_out_a_tenth_of_its_training_images(tmp_path):
    splits = {"train": numbered(50), "validation": numbered(7), "test": [(jpeg(0), -1)] * 3}
    write_tfds(tmp_path, splits, num_classes=50)
    dataset = open_dataset("imagenet", tmp_path)
    assert (dataset.num_classes, dataset.image_size, dataset.crops) == (50, 224, "resized")
    assert [len(source) for source in (dataset.train, dataset.val, dataset.test)] == [45, 5, 7]
    assert sorted(labels(dataset.train) + labels(dataset.val)) == list(range(50))
    assert labels(dataset.val) == labels(open_dataset("imagenet", tmp_path).val)
    assert labels(dataset.test) == list(range(7))  # the test split's labels are secret
    assert dataset.train[0].data == jpeg(dataset.train[0].label)
    assert "tensorflow" not in sys.modules


def test_tfds_gives_classes_and_size(tmp_path):
    splits = {"train": numbered(20), "test": numbered(5)}
    write_tfds(tmp_path, splits, num_classes=20, name="small/1.0.0", shape=(32, 32, 3))
    write_tfds(tmp_path, splits, num_classes=30, name="small/10.0.0", shape=(32, 32, 3))
    write_tfds(tmp_path, splits | {"validation": numbered(4)}, 20, name="other/grey/2.0.0", shape=(40, 48, 1))
    dataset = open_dataset("tfds:small", str(tmp_path))
    assert (dataset.num_classes, dataset.image_size, dataset.crops) == (30, 32, "shifted")
    assert open_dataset("tfds:small:1.0.0", tmp_path).num_classes == 20
    assert open_dataset("tfds:small", tmp_path, image_size=64).crops == "resized"
    other = open_dataset("tfds:other/grey", tmp_path)
    assert [len(source) for source in (other.train, other.val, other.test)] == [20, 4, 5]
    assert (other.image_size, other.crops) == (224, "resized")


def test_folder_holds_out_the_last_files_of_each_class(tmp_path):
    write_folder(tmp_path, {"train": {"ant": 30, "bee": 12, "cat": 5}, "val": {"ant": 2, "cat": 1}})
    (tmp_path / "train/ant/readme.txt").write_text("no image")
    dataset = open_dataset(f"folder:{tmp_path}")
    assert (dataset.num_classes, dataset.image_size, dataset.crops) == (3, 224, "resized")
    assert labels(dataset.val) == [0, 0, 0, 1]
    assert Counter(labels(dataset.train)) == {0: 27, 1: 11, 2: 5}
    assert labels(dataset.test) == [0, 0, 2]
    assert dataset.test[2].data == jpeg(1)
    (tmp_path / "val/cat/000.jpg").unlink()
    with pytest.raises(DamagedImage, match=r"val/cat/000\.jpg: No such file"):
        dataset.test[2]


def test_held_out_images_of_imagenet_in_a_folder_are_the_published_ones():
    source = sources.FolderSource(Path(), [str(i) for i in range(1000)], [["a"] * 732, *[["a"] * 1300] * 999])
    held_out = source.held_out()
    assert len(held_out) == 50_000
    np.testing.assert_array_equal(held_out[:50], np.arange(682, 732))


@pytest.mark.parametrize(
    ("name", "data_dir", "message"),
    [
        ("imagenet", None, r"`data_dir` \(=None\) must name a TFDS directory"),
        ("imagenet", "none", r"`data_dir` .*none.* lacks imagenet2012 \(it holds nothing\)"),
        ("imagenet", "elsewhere", r"lacks imagenet2012 \(it holds cifar10, mixed\)"),
        ("imagenet", "old", r"lacks version 5\.1\.0 \(it holds 5\.0\.0\)"),
        ("imagenet", "good/imagenet2012", r"lacks imagenet2012 .* give the directory above, '.*good'"),
        ("imagenet", "good/imagenet2012/5.1.0", r"give the directory above, '.*good'"),
        ("tfds:mixed", "elsewhere", r"mixed/1\.0\.0 holds another data set, cifar10/3\.0\.2"),
        ("imagenet", "tfrecord", r"is in the format tfrecord: prepare it with file_format='array_record'"),
        ("imagenet", "incomplete", r"lacks 1 of 1 files of its split 'validation'"),
        ("imagenet", "no_info", r"lacks dataset_info\.json"),
        ("imagenet", "bad_info", r"holds no readable TFDS data set"),
        ("imagenet", "empty", r"has no images in its split 'validation'"),
        ("imagenet", "one_class", r"has 1 class: classification needs two or more"),
        ("imagenet", "no_test", r"has the labelled splits train: needed are train, and"),
        ("imagenet", "few", r"too few training images \(9\) to hold out a tenth"),
        ("folder:{}/none", None, r"folder:.*none lacks .*none/train \(it holds nothing\)"),
        ("folder:{}/folder_one", None, r"has 1 class"),
        ("folder:{}/folder_empty_class", None, r"train/bee has no images, nor have 0 other"),
        ("folder:{}/folder_empty", None, r"has no images in its split 'train'"),
        ("folder:{}/folder_other", None, r"val has 1 classes that train lacks, as 'dog'"),
        ("imagnet", None, r"`dataset` \(='imagnet'\) is unknown: valid are imagenet, tfds:NAME, folder:PATH"),
        ("tfds:", None, r"is unknown"),
    ],
)
def test_bad_data_is_one_clear_error(wrong_data, name, data_dir, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(name.format(wrong_data), data_dir and wrong_data / data_dir)


@pytest.fixture(scope="module")
def wrong_data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("wrong")
    images = {"train": numbered(20), "validation": numbered(3)}
    write_tfds(root / "good", images, 20)
    write_tfds(root / "elsewhere", images, 20, name="cifar10/3.0.2")
    write_tfds(root / "elsewhere", images, 20, name="mixed/1.0.0", stored_name="cifar10/3.0.2")
    write_tfds(root / "old", images, 20, name="imagenet2012/5.0.0")
    write_tfds(root / "tfrecord", images, 20, file_format="tfrecord")
    directory = write_tfds(root / "incomplete", images, 20)
    (directory / "imagenet2012-validation.array_record-00000-of-00001").unlink()
    (write_tfds(root / "no_info", images, 20) / "dataset_info.json").unlink()
    (write_tfds(root / "bad_info", images, 20) / "dataset_info.json").write_text("{")
    write_tfds(root / "empty", images | {"validation": []}, 20)
    write_tfds(root / "one_class", {split: [(jpeg(0), 0)] * 20 for split in images}, 1)
    write_tfds(root / "no_test", {"train": numbered(20)}, 20)
    write_tfds(root / "few", images | {"train": numbered(9)}, 9)
    write_folder(root / "folder_one", {"train": {"ant": 10}, "val": {"ant": 1}})
    write_folder(root / "folder_empty_class", {"train": {"ant": 10, "bee": 0}, "val": {"ant": 1}})
    write_folder(root / "folder_empty", {"train": {"ant": 0, "bee": 0}, "val": {"ant": 1}})
    write_folder(root / "folder_other", {"train": {"ant": 10, "bee": 10}, "val": {"dog": 1}})
    return root


@pytest.mark.parametrize("missing", ["PIL", "simplejpeg"])
def test_missing_decoder_is_named(monkeypatch, tmp_path, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(ValueError, match="needs image decoders: pip install pillow simplejpeg"):
        open_dataset("imagenet", tmp_path)


# -- streams -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> sources.StreamedDataset:
    """30 training images, each its own class; some of them not plain JPEG, three of them damaged."""
    replaced = {
        "i2": encoded(picture(2, 40, 48).convert("CMYK")),
        "i3": encoded(picture(3, 40, 48), "PNG"),
        "i5": TRUNCATED,
        "i6": DAMAGED["garbage"],
        "i20": b"",
    }
    data_dir = tmp_path_factory.mktemp("stream")
    images = {"train": numbered(30, **replaced), "validation": numbered(11, i4=b""), "test": numbered(5)}
    write_tfds(data_dir, images, num_classes=30, name="thirty/1.0.0")
    return open_dataset("tfds:thirty", data_dir, image_size=16)


def take(batches: Iterator[stream.Batch], num: int) -> list[stream.Batch]:
    return list(islice(batches, num))


def assert_same(actual: list[stream.Batch], expected: list[stream.Batch]) -> None:
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)
        assert a.damaged == b.damaged


def test_training_batches_are_a_function_of_the_seed(dataset):
    batches = take(stream.TrainStream(dataset, 6, seed=0), 10)
    for batch in batches:
        assert batch.images.shape == (6, 16, 16, 3)
        assert batch.images.dtype == np.uint8
        assert batch.images.flags.c_contiguous
        assert batch.labels.dtype == np.int32
    assert_same(take(stream.TrainStream(dataset, 6, seed=0), 10), batches)
    others = take(stream.TrainStream(dataset, 6, seed=1), 10)
    assert [b.labels.tolist() for b in others] != [b.labels.tolist() for b in batches]
    assert [b.labels.tolist() for b in batches[5:]] != [b.labels.tolist() for b in batches[:5]]


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_an_epoch_sees_every_image_once(dataset, num_processes):
    """Whatever the number of processes, a step's batch is the same, and damaged images have stand-ins."""
    streams = [stream.TrainStream(dataset, 6, 0, index, num_processes) for index in range(num_processes)]
    expected = {5: 7, 6: 7, 20: 21}  # the next whole image
    for epoch in range(2):
        steps = [[next(s) for s in streams] for _ in range(5)]
        seen = Counter(int(label) for step in steps for batch in step for label in batch.labels)
        assert seen == Counter(expected.get(label, label) for label in range(30))
        assert sum(s.damaged for s in streams) == 3 * (epoch + 1)
    whole = take(stream.TrainStream(dataset, 6, 0), 10)[5:]
    for step, batch in zip(steps, whole, strict=True):
        interleaved = np.stack([b.images for b in step], axis=1).reshape(batch.images.shape)
        np.testing.assert_array_equal(interleaved, batch.images)


def test_damaged_images_are_told(dataset):
    batches = take(stream.TrainStream(dataset, 10, seed=0), 3)
    told = {message.split(":")[0] for batch in batches for message in batch.damaged}
    assert told == {"image 5", "image 6", "image 20"}
    assert sum((~batch.new).sum() for batch in batches) == 3


def test_resumed_stream_goes_on_with_the_very_next_image(dataset):
    first = stream.TrainStream(dataset, 6, seed=3)
    take(first, 4)
    state = json.loads(json.dumps(first.state()))
    expected = take(first, 7)
    resumed = stream.TrainStream(dataset, 6, seed=3)
    resumed.restore(state)
    assert_same(take(resumed, 7), expected)
    assert resumed.damaged == first.damaged > 0
    resumed.restore(state)
    assert_same(take(resumed, 2), expected[:2])
    halves = [stream.TrainStream(dataset, 6, 3, index, 2) for index in range(2)]
    for half in halves:
        half.restore(state)
    np.testing.assert_array_equal(np.stack([next(h).labels for h in halves], 1).ravel(), expected[0].labels)


def test_state_of_another_stream_is_refused(dataset):
    state = stream.TrainStream(dataset, 6, seed=3).state()
    with pytest.raises(
        ValueError, match=r"another stream of images: batch_size was 6, is 5; seed was 3, is 4"
    ):
        stream.TrainStream(dataset, 5, seed=4).restore(state)


def test_workers_make_the_same_batches(dataset):
    """Workers start, and start again after a restore; one that is killed is an error, not a hang."""
    expected = take(stream.TrainStream(dataset, 6, seed=0), 6)
    worked = stream.TrainStream(dataset, 6, seed=0, num_workers=2)
    assert_same(take(worked, 3), expected[:3])
    for process in multiprocessing.active_children():
        process.kill()
    with pytest.raises(ValueError, match=r"a worker process died .*: lower `num_workers` \(=2\)"):
        take(worked, 20)
    worked.close()
    assert not multiprocessing.active_children()


def test_evaluation_sees_every_image_once(dataset):
    batches = list(stream.evaluation_batches(dataset, dataset.val, batch_size=4, seed=0))
    assert [batch.images.shape for batch in batches] == [(4, 16, 16, 3)] * 3
    counted = [int(label) for b in batches for label in b.labels[b.new]]
    assert sorted(counted) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert next(message for b in batches for message in b.damaged).startswith("image 4: ")
    image = Image.fromarray(decode.decode(jpeg(3))).resize((21, 18), Image.Resampling.BILINEAR)
    place = next((b, i) for b in batches for i in range(4) if b.labels[i] == 3)
    np.testing.assert_array_equal(place[0].images[place[1]], np.asarray(image)[1:17, 2:18])
    assert_same(list(stream.evaluation_batches(dataset, dataset.val, batch_size=4, seed=0)), batches)
    other = stream.evaluation_batches(dataset, dataset.val, batch_size=4, seed=1)
    assert any((a.labels != b.labels).any() for a, b in zip(other, batches, strict=True))


def test_bytes_damaged_on_disk_are_told(tmp_path):
    directory = write_tfds(tmp_path, {"train": numbered(20), "validation": numbered(5)}, 20)
    shard = directory / "imagenet2012-train.array_record-00000-of-00001"
    content = bytearray(shard.read_bytes())
    place = 5000
    content[place : place + 8] = b"\0" * 8
    shard.write_bytes(content)
    dataset = open_dataset("imagenet", tmp_path, image_size=16)
    train = stream.TrainStream(dataset, 18, seed=0)
    (message,) = next(train).damaged
    assert "hash mismatch" in message
    assert train.damaged == 1


def test_nothing_readable_is_an_error(tmp_path):
    write_folder(tmp_path, {"train": {"ant": 40, "bee": 40}, "val": {"ant": 1}})
    dataset = open_dataset(f"folder:{tmp_path}", image_size=16)
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(ValueError, match=r"64 images in a row cannot be read \(image .*No such file"):
        next(stream.TrainStream(dataset, 4, seed=0))


def test_too_little_shared_memory_is_an_error(dataset, monkeypatch):
    Usage = namedtuple("Usage", "free")
    monkeypatch.setattr(stream.shutil, "disk_usage", lambda path: Usage(free=64 * 2**20))
    monkeypatch.setattr(stream, "_SHARED_MEMORY", Path("/"))
    stream._check_workers(0, 256 * 224 * 224 * 3)  # 36.75 MiB a batch
    with pytest.raises(
        ValueError, match=r"`num_workers` \(=2\) needs 294 MiB of shared memory, / has 64: lower it to 0"
    ):
        stream._check_workers(2, 256 * 224 * 224 * 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, r"`batch_size` \(=0\) must be in 1\.\.30"),
        ({"batch_size": 31}, r"`batch_size` \(=31\) must be in 1\.\.30"),
        ({"process_count": 4}, r"`batch_size` \(=6\) does not divide over 4 processes"),
        ({"seed": -1}, r"`seed` \(=-1\) must not be negative"),
        ({"num_workers": -1}, r"`num_workers` \(=-1\) must not be negative"),
    ],
)
def test_numbers_out_of_range_are_errors(dataset, arguments, message):
    with pytest.raises(ValueError, match=message):
        stream.TrainStream(dataset, **({"batch_size": 6, "seed": 0} | arguments))


def test_too_few_images_to_evaluate_are_an_error(dataset):
    with pytest.raises(ValueError, match=r"`batch_size` \(=64\) must be in 1\.\.11"):
        next(stream.evaluation_batches(dataset, dataset.val))


# -- packing -------------------------------------------------------------------------------------------------


def add_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def archives(tmp_path, monkeypatch) -> Path:
    """Archives in the official form, with three training synsets of 12 images and five validation images."""
    monkeypatch.setattr(imagenet, "SIZES", {"train": 36, "validation": 5})
    monkeypatch.setattr(imagenet, "SHARDS", {"train": 4, "validation": 2})
    directory = tmp_path / "archives"
    directory.mkdir()
    with tarfile.open(directory / "ILSVRC2012_img_train.tar", "w") as outer:
        for number, synset in enumerate(["n01440764", "n01443537", "n15075141"]):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w") as inner:
                for index in range(12):
                    add_file(inner, f"{synset}_{index}.JPEG", jpeg(12 * number + index))
            add_file(outer, f"{synset}.tar", file.getvalue())
    with tarfile.open(directory / "ILSVRC2012_img_val.tar", "w") as tar:
        for index in reversed(range(5)):
            add_file(tar, f"ILSVRC2012_val_{index + 1:08}.JPEG", jpeg(100 + index))
    return directory


def test_packed_imagenet_is_read_back(archives, tmp_path):
    seen = []
    imagenet.prepare_imagenet(tmp_path / "tfds", archives, lambda *counts: seen.append(counts))
    dataset = open_dataset("imagenet", tmp_path / "tfds")
    assert dataset.num_classes == 1000
    assert Counter(labels(dataset.train) + labels(dataset.val)) == {0: 12, 1: 12, 999: 12}
    assert set(examples(dataset.train)) < {
        (jpeg(12 * i + j), label) for i, label in enumerate([0, 1, 999]) for j in range(12)
    }
    info: Any = tfds.builder_from_directory(tmp_path / "tfds/imagenet2012/5.1.0").info
    synsets = info.features["label"].names
    official = Path(tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")).read_text().split()
    assert {synsets[label]: data for data, label in examples(dataset.test)} == {
        official[i]: jpeg(100 + i) for i in range(5)
    }
    assert seen[35:37] == [(36, 36), (1, 5)]
    assert "tensorflow" not in sys.modules


def test_wrong_archives_are_refused(archives, tmp_path):
    train = archives / "ILSVRC2012_img_train.tar"
    content = train.read_bytes()
    train.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"ILSVRC2012_img_train\.tar is damaged after \d+ images"):
        imagenet.prepare_imagenet(tmp_path / "tfds", archives)
    train.write_bytes(content[:10240] + b"\0" * 10240)
    with pytest.raises(ValueError, match=r"ILSVRC2012_img_train\.tar (has|is damaged)"):
        imagenet.prepare_imagenet(tmp_path / "tfds", archives)
    train.unlink()
    with pytest.raises(ValueError, match=r"lacks ILSVRC2012_img_train\.tar: get it from image-net\.org"):
        imagenet.prepare_imagenet(tmp_path / "tfds", archives)
    assert not list((tmp_path / "tfds/imagenet2012").iterdir())
    (tmp_path / "tfds/imagenet2012/5.1.0").mkdir()
    with pytest.raises(ValueError, match=r"already has .*5\.1\.0: remove it first"):
        imagenet.prepare_imagenet(tmp_path / "tfds", archives)
