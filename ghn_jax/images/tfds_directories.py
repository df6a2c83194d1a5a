"""Image sets in TFDS directories, in array_record format, read without TensorFlow."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from ghn_jax.images.examples import MAX_HELD_OUT, DamagedImage, Example, Found
from ghn_jax.runtime.errors import check_directory, some
from ghn_jax.runtime.extras import extra
from ghn_jax.runtime.open_files import allow_open_files


class TfdsSource:
    """A split of a TFDS data set in array_record format."""

    def __init__(self, records: Any, split: str, image_key: str, label_key: str, num_classes: int):
        self._records = records
        self._split = split
        self._image_key = image_key
        self._label_key = label_key
        self._num_classes = num_classes

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int, /) -> Example:
        example = self._read(index)
        label = example[self._label_key]
        if not 0 <= label < self._num_classes:
            raise DamagedImage(f"record {index} has label {label}, not in 0..{self._num_classes - 1}")
        return Example(example[self._image_key], label, f"record {index} of {self._split}")

    def _read(self, index: int) -> dict[str, Any]:
        try:
            return self._records[index]
        except Exception as error:  # array_record, protobuf and TFDS each have their own for damaged bytes
            raise DamagedImage(f"record {index}: {' '.join(str(error).split())}") from error

    def all(self) -> list[dict[str, Any]]:
        """All records, which must fit in memory; DamagedImage if one cannot be read."""
        try:
            return self._records.__getitems__(range(len(self)))
        except Exception as error:
            raise DamagedImage(f"a record of {self._split}: {' '.join(str(error).split())}") from error

    def labelled(self) -> bool:
        """Whether its images have labels."""
        try:
            return self._read(0)[self._label_key] >= 0
        except DamagedImage:
            return True

    def held_out(self) -> Int[np.ndarray, " image"]:
        """Indices to validate with: a random tenth that is fixed for good, 50,000 at most.

        For ImageNet that is 50 ± 7 images of a class. The published code takes exactly 50, the last by file name; to
        find them here would mean to read the whole set.
        """
        return np.sort(self._drawn()[0])

    def held_out_to_test(self) -> Int[np.ndarray, " image"]:
        """Indices of others to test with: another tenth."""
        return np.sort(self._drawn()[1])

    def _drawn(self) -> Int[np.ndarray, "two image"]:
        num = min(len(self) // 10, MAX_HELD_OUT)
        return np.random.default_rng(0).permutation(len(self))[: 2 * num].reshape(2, num)


def open_tfds(name: str, data_dir: Path | str | None, renamed: bool = True) -> Found:
    """Opens the TFDS data set NAME, NAME/CONFIG or either with :VERSION, by default the highest one there.

    Args:
      renamed: whether its directory may have another name than the data set; never another version.

    Raises ValueError if it is not there, is not whole, or holds no classes of images.
    """
    with extra("train"):
        import tensorflow_datasets as tfds  # slow to import, and folders do without

    directory = _tfds_directory(name, data_dir)
    try:
        builder: Any = tfds.builder_from_directory(directory)
        info = builder.info
        stored = info.full_name
    except Exception as error:  # a description may be wrong in many ways; all mean the same to the user
        raise ValueError(
            f"{directory} holds no readable TFDS data set ({error}): prepare it again"
        ) from error
    called = str(directory.relative_to(Path(str(data_dir))))
    if stored != called and not (renamed and stored.split("/")[-1] == directory.name):
        raise ValueError(
            f"{directory} holds another data set, {stored}: `data_dir` (={str(data_dir)!r}) is mixed up"
        )
    file_format = info.file_format.value if info.file_format else None
    if file_format != "array_record":
        raise ValueError(
            f"{directory} is in the format {file_format}: prepare it with file_format='array_record' (docs/imagenet.md)"
        )
    image_key, label_key = _image_and_label(directory, info, tfds)
    decoders = {
        key: tfds.decode.SkipDecoding()
        for key, feature in info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    label = info.features[label_key]
    classes = tuple(label.names) if label.num_classes else ()
    splits = {}
    num_files = 0
    digest = hashlib.sha256(repr((stored, classes)).encode())
    for split, split_info in info.splits.items():
        missing = [path for path in split_info.filepaths if not os.path.exists(path)]
        if missing:
            raise ValueError(
                f"{directory} lacks {len(missing)} of {len(split_info.filepaths)} files of its split {split!r}, as "
                f"{Path(missing[0]).name}: copy or prepare it again"
            )
        num_files += len(split_info.filepaths)
        digest.update(repr((split, split_info.shard_lengths)).encode())
        for path in split_info.filepaths:
            digest.update(_index(path))
        records = builder.as_data_source(split=split, decoders=decoders) if split_info.num_examples else ()
        splits[split] = TfdsSource(records, split, image_key, label_key, len(classes))
    allow_open_files(num_files)
    notes = (f"{directory} is the data set {stored}, renamed",) if stored != called else ()
    return Found(classes, info.features[image_key].shape, splits, digest.hexdigest()[:16], notes)


def _index(path: str, num_bytes: int = 2**16) -> bytes:
    """The end of a shard, which says where its records are, and the shard's size."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - num_bytes))
        return file.read() + size.to_bytes(8, "big")


def _tfds_directory(name: str, data_dir: Path | str | None) -> Path:
    """The directory of a data set's version."""
    page = "imagenet" if name.startswith("imagenet") else "images"
    remedy = f"see docs/{page}.md"
    if data_dir is None:
        raise ValueError(f"`data_dir` (=None) must name a TFDS directory with {name}: {remedy}")
    check_directory("data_dir", Path(data_dir), f"give a TFDS directory with {name}, {remedy}")
    path, _, version = name.partition(":")
    home = Path(data_dir, path)
    if not home.is_dir():
        there = sorted(p.name for p in Path(data_dir).iterdir() if p.is_dir())
        above = next((p for p in Path(data_dir).absolute().parents if (p / path).is_dir()), None)
        if above:
            remedy = f"give the directory above, {str(above)!r}"
        raise ValueError(
            f"`data_dir` (={str(data_dir)!r}) lacks {path} (it holds {some(there) or 'no directories'}): {remedy}"
        )
    versions = _versions(home)
    versions.sort(key=lambda text: tuple(map(int, text.split("."))))
    configurations = _configurations(home)
    if configurations and not versions:
        raise ValueError(
            f"`dataset` (=tfds:{name}) has several configurations: give one, as "
            f"{' or '.join(f'tfds:{path}/{each}' for each in configurations[:3])}"
        )
    if not versions or (version and version not in versions):
        raise ValueError(
            f"{home} lacks version {version or 'N.N.N'} (it holds {', '.join(versions) or 'none'}): {remedy}"
        )
    directory = home / (version or versions[-1])
    if not (directory / "dataset_info.json").is_file():
        raise ValueError(f"{directory} lacks dataset_info.json: it is incomplete, {remedy}")
    return directory


def _versions(home: Path) -> list[str]:
    return [p.name for p in home.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", p.name)]


def _configurations(home: Path) -> list[str]:
    """Names of the folders of a data set that have versions in them."""
    return sorted(p.name for p in home.iterdir() if p.is_dir() and _versions(p))


def _image_and_label(directory: Path, info: Any, tfds: Any) -> tuple[str, str]:
    """Names of the features that a classifier takes and gives."""
    kinds = {key: type(feature) for key, feature in info.features.items()}
    keys = info.supervised_keys or kinds
    image = next((key for key in keys if kinds.get(key) is tfds.features.Image), None)
    label = next((key for key in keys if kinds.get(key) is tfds.features.ClassLabel), None)
    if image is None or label is None:
        raise ValueError(f"{directory} is no image classification set: its features are {', '.join(kinds)}")
    return image, label
