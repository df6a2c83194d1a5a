"""Prepares CIFAR-10 for TFDS without TensorFlow: official binary archive in, array_record directory out.

Command line: `python -m datasets.images prepare cifar10 --data_dir DIR [--archive FILE]`.
"""

import hashlib
import io
import json
import sys
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from datasets.tfds_layout import dataset_info
from ghn_jax.images.resident import CIFAR10_VERSION, ImageSplit
from ghn_jax.runtime import commands, outputs

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FILES = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)}
"""Files of the archive that make up each split, in the order in which their images are numbered."""

RECORD_BYTES = 1 + 3 * 32 * 32
"""A label, then a red, a green and a blue plane."""

Progress = Callable[[int, int], None]
"""Is told how many bytes have come, and of how many (0 if unknown)."""


def prepare_cifar10(
    data_dir: Path, archive: Path | None = None, progress: Progress = lambda received, size: None
) -> Path:
    """Writes `data_dir`/cifar10/3.0.2, which `ghn_jax.images.resident.load` reads, and returns that directory.

    Args:
      data_dir: TFDS directory, made if missing.
      archive: a local `cifar-10-binary.tar.gz`; None downloads the official one, 162 MiB.
      progress: follows the download.

    Raises:
      ValueError: the data set is there already, or the archive is not a whole CIFAR-10, binary version.
      OSError: the directory cannot be written, or the download fails.
    """
    directory = data_dir / "cifar10" / CIFAR10_VERSION
    if directory.exists():
        raise ValueError(f"`data_dir` (={str(data_dir)!r}) already has {directory}: remove it first")
    outputs.check_directory("data_dir", data_dir)
    with tempfile.TemporaryDirectory() as scratch:
        splits = read_archive(archive or _download(Path(scratch, "cifar-10-binary.tar.gz"), progress))
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and then renamed, so that a directory of that name is always whole.
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix="incomplete.") as scratch:
        partial = Path(scratch, CIFAR10_VERSION)
        partial.mkdir()
        _write(partial, splits)
        partial.rename(directory)
    return directory


def read_archive(archive: Path) -> dict[str, ImageSplit]:
    """The "train" and "test" images in a `cifar-10-binary.tar.gz`, in their official order.

    Raises:
      ValueError: `archive` is missing, damaged or something else.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            members = {Path(member.name).name: member for member in tar}
            return {split: _read_split(tar, members, names) for split, names in FILES.items()}
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError) as error:
        raise ValueError(
            f"`archive` (={str(archive)!r}) must be a whole cifar-10-binary.tar.gz, as at {URL}: {error}"
        ) from error


def _read_split(
    tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], names: tuple[str, ...]
) -> ImageSplit:
    """The images of the files `names`, one after the other."""
    records = np.concatenate([_read_records(tar, members, name) for name in names])
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    return ImageSplit(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, 0].astype(np.int32))


def _read_records(
    tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], name: str
) -> UInt8[np.ndarray, "image 3073"]:
    file = tar.extractfile(members[name]) if name in members else None
    if file is None:
        raise ValueError(f"it lacks {name}")
    data = np.frombuffer(file.read(), np.uint8)
    if data.size == 0 or data.size % RECORD_BYTES:
        raise ValueError(f"{name} has {data.size} bytes, not a multiple of {RECORD_BYTES}")
    records = data.reshape(-1, RECORD_BYTES)
    if records[:, 0].max() >= len(CLASSES):
        raise ValueError(f"{name} has label {records[:, 0].max()}, not in 0..{len(CLASSES) - 1}")
    return records


def _download(path: Path, progress: Progress) -> Path:
    """Fetches the official archive, which must have the published checksum."""
    with urllib.request.urlopen(URL, timeout=60) as response, path.open("wb") as file:
        size = int(response.headers.get("Content-Length", 0))
        while chunk := response.read(2**20):
            file.write(chunk)
            progress(file.tell(), size)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise ValueError(f"{URL} came with SHA-256 {digest}, not {SHA256}: try again, or give `archive`")
    return path


def _write(directory: Path, splits: dict[str, ImageSplit]) -> None:
    """Writes the TFDS files: one shard of tf.train.Example protos per split, and their description."""
    import tensorflow_datasets as tfds  # slow to import, and a wrong archive is to be refused at once
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    features = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=list(CLASSES)),
        }
    )
    specs: Any = features.get_serialized_info()
    serializer = ExampleSerializer(specs)
    num_bytes = dict.fromkeys(splits, 0)
    for name, split in splits.items():
        # One example per group, as TFDS has it: reading one then unpacks no other.
        path = directory / f"cifar10-{name}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for index, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            example: Any = {"id": f"{name}_{index:05d}", "image": _png(image), "label": label}
            record = serializer.serialize_example(example)
            writer.write(record)
            num_bytes[name] += len(record)
        writer.close()
    features.save_config(str(directory))
    info = dataset_info(
        "cifar10",
        CIFAR10_VERSION,
        "CIFAR-10: 32x32 colour images in 10 classes.",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "tensorflow_datasets.image_classification.cifar",
        [
            {"name": name, "shardLengths": [str(len(split.labels))], "numBytes": str(num_bytes[name])}
            for name, split in splits.items()
        ],
    )
    (directory / "dataset_info.json").write_text(json.dumps(info, indent=2))


def _png(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def prepare(name: Literal["cifar10"], /, data_dir: Path, archive: Path | None = None) -> None:
    """Prepares a data set, without TensorFlow.

    Args:
      name: the data set; digits needs no preparation.
      data_dir: TFDS directory to write it to.
      archive: a local cifar-10-binary.tar.gz, downloaded if not given.
    """

    def show(received: int, size: int) -> None:
        end = "\n" if received == size else "\r"
        print(f"{received >> 20} of {size >> 20} MiB", end=end, file=sys.stderr, flush=True)

    print(f"wrote {prepare_cifar10(data_dir, archive, show)}")


def main() -> None:
    """Runs the command line."""
    commands.call("python -m datasets.images", {"prepare": prepare})


if __name__ == "__main__":
    main()
