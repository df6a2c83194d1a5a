"""Small image sets that tests write."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from ghn_jax.images.examples import Example, Source


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


def examples(source: Source) -> list[Example]:
    return [source[index] for index in range(len(source))]


def labels(source: Source) -> list[int]:
    return [example.label for example in examples(source)]
