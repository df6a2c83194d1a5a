"""Image sets too large for a device: random access to their undecoded images and labels.

    imagenet             TFDS `imagenet2012`, version 5.1.0, in array_record format
    tfds:NAME            any TFDS classification set, tfds:NAME/CONFIG:VERSION in full
    folder:PATH          a directory PATH/{train,val}/CLASS/*.jpg, as torchvision's ImageFolder has it

TensorFlow is not needed. See docs/imagenet.md for how to get ImageNet.

[1] facebookresearch/ppuda, vision/imagenet.py: the last 50 training images of each class are held out for validation.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int

from ghn_jax.runtime.extras import extra
from ghn_jax.runtime.open_files import allow_open_files

STREAMED = ("imagenet", "tfds:NAME", "folder:PATH")
"""Forms of the names that `open_dataset` accepts."""

SMALL, LARGE = 32, 224
"""Image sizes, in pixels."""

RGB = tuple[float, float, float]

_IMAGENET_COLORS: tuple[RGB, RGB] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR10_COLORS: tuple[RGB, RGB] = (
    (0.49139968, 0.48215827, 0.44653124),
    (0.24703233, 0.24348505, 0.26158768),
)
_MAX_HELD_OUT = 50_000
"""50 images of each ImageNet class [1]; of a smaller set a tenth is held out."""

_SPLITS = {"train": ("train",), "val": ("validation", "val", "valid"), "test": ("test",)}
"""Names under which data sets have their splits."""
_EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"))


class DamagedImage(ValueError):
    """A record or file that holds no whole image of a known class."""


class Example(NamedTuple):
    """An image file's content, and its class."""

    data: bytes
    label: int


class Source(Protocol):
    """Random access to the images of a split; sent to worker processes, hence to be pickled.

    `source[index]` raises DamagedImage for what cannot be read.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Example: ...


@dataclass(frozen=True)
class StreamedDataset:
    """A classification set, and how its images are cropped and normalised.

    Attributes:
      name: as given to `open_dataset`.
      image_size: height and width of the images that networks see, in pixels.
      mean: of the pixels per colour, in 0..1; the published constants.
      std: their standard deviation.
      crops: training images are "resized" random parts with jittered colours, as published for ImageNet; or, in sets
        whose images all have `image_size`, whole images "shifted" a little, as published for CIFAR-10.
      train: training images.
      val: held out from the training images, unless the set has three splits.
      test: images never trained on; ImageNet's official validation images, since its test labels are secret.
    """

    name: str
    num_classes: int
    image_size: int
    mean: RGB
    std: RGB
    crops: Literal["resized", "shifted"]
    train: Source
    val: Source
    test: Source


def open_dataset(
    name: str, data_dir: Path | str | None = None, image_size: int | None = None
) -> StreamedDataset:
    """Opens a data set, without reading its images.

    Args:
      name: of the forms in `STREAMED`.
      data_dir: TFDS directory; not used by folder:PATH.
      image_size: 32 if that is the size of all images, else 224, unless given; those that networks are made for.

    Raises:
      ValueError: the name is unknown; the set is missing, incomplete, of another version or format, or has an empty
        split or a single class; or no decoder is installed.
    """
    with extra("train"):  # told here rather than at the first batch
        import PIL  # noqa: F401
        import simplejpeg  # noqa: F401
    if image_size is not None and image_size < 1:
        raise ValueError(f"`image_size` (={image_size}) must be at least 1")
    kind, _, rest = name.partition(":")
    if name == "imagenet":
        found = _open_tfds("imagenet2012:5.1.0", data_dir)
    elif kind == "tfds" and rest:
        found = _open_tfds(rest, data_dir)
    elif kind == "folder" and rest:
        found = _open_folder(Path(rest).expanduser())
    else:
        raise ValueError(f"`dataset` (={name!r}) is unknown: valid are {', '.join(STREAMED)}")
    if found.num_classes < 2:
        raise ValueError(
            f"`dataset` (={name!r}) has {found.num_classes} class: classification needs two or more"
        )
    train, val, test = _three_splits(name, found.splits)
    image_size = image_size or (SMALL if found.image_size == SMALL else LARGE)
    whole = image_size == found.image_size
    mean, std = _CIFAR10_COLORS if whole else _IMAGENET_COLORS
    return StreamedDataset(
        name=name,
        num_classes=found.num_classes,
        image_size=image_size,
        mean=mean,
        std=std,
        crops="shifted" if whole else "resized",
        train=train,
        val=val,
        test=test,
    )


class _Found(NamedTuple):
    """What a directory holds: number of classes, size of all images if they share one, and splits by name."""

    num_classes: int
    image_size: int | None
    splits: dict[str, "TfdsSource | FolderSource"]


def _three_splits(name: str, splits: dict[str, "TfdsSource | FolderSource"]) -> tuple[Source, Source, Source]:
    """Training, validation and test images; validation images come from the training ones if need be."""
    for split, source in splits.items():
        if len(source) == 0:
            raise ValueError(f"`dataset` (={name!r}) has no images in its split {split!r}: prepare it again")
    # Test labels that a benchmark keeps secret are stored as -1.
    labelled = {split: source for split, source in splits.items() if source.labelled()}
    train, val, test = (
        next((labelled[split] for split in names if split in labelled), None) for names in _SPLITS.values()
    )
    unseen = [source for source in (val, test) if source is not None]
    if train is None or not unseen:
        raise ValueError(
            f"`dataset` (={name!r}) has the labelled splits {', '.join(labelled) or 'none'}: needed are train, and "
            "validation or test"
        )
    if len(unseen) == 2:
        return train, unseen[0], unseen[1]
    held_out = train.held_out()
    if len(held_out) == 0:
        raise ValueError(
            f"`dataset` (={name!r}) has too few training images ({len(train)}) to hold out a tenth for validation"
        )
    kept = np.setdiff1d(np.arange(len(train)), held_out)
    return Subset(train, kept), Subset(train, held_out), unseen[0]


class Subset:
    """Some images of another source."""

    def __init__(self, source: Source, indices: Int[np.ndarray, " image"]):
        self._source = source
        self._indices = indices.astype(np.int32)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int, /) -> Example:
        return self._source[int(self._indices[index])]


# -- TFDS ----------------------------------------------------------------------------------------------------


class TfdsSource:
    """A split of a TFDS data set in array_record format."""

    def __init__(self, records: Any, image_key: str, label_key: str, num_classes: int):
        self._records = records
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
        return Example(example[self._image_key], label)

    def _read(self, index: int) -> dict[str, Any]:
        try:
            return self._records[index]
        except Exception as error:  # array_record, protobuf and TFDS each have their own for damaged bytes
            raise DamagedImage(f"record {index}: {' '.join(str(error).split())}") from error

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
        num = min(len(self) // 10, _MAX_HELD_OUT)
        return np.sort(np.random.default_rng(0).permutation(len(self))[:num])


def _open_tfds(name: str, data_dir: Path | str | None) -> _Found:
    """Opens the TFDS data set NAME, NAME/CONFIG or either with :VERSION, by default the highest one there."""
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
    if stored != str(directory.relative_to(Path(str(data_dir)))):
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
    num_classes = info.features[label_key].num_classes or 0
    splits = {}
    num_files = 0
    for split, split_info in info.splits.items():
        missing = [path for path in split_info.filepaths if not os.path.exists(path)]
        if missing:
            raise ValueError(
                f"{directory} lacks {len(missing)} of {len(split_info.filepaths)} files of its split {split!r}, as "
                f"{Path(missing[0]).name}: copy or prepare it again"
            )
        num_files += len(split_info.filepaths)
        records = builder.as_data_source(split=split, decoders=decoders) if split_info.num_examples else ()
        splits[split] = TfdsSource(records, image_key, label_key, num_classes)
    allow_open_files(num_files)
    height, width, _ = info.features[image_key].shape
    return _Found(num_classes, height if height == width else None, splits)


def _tfds_directory(name: str, data_dir: Path | str | None) -> Path:
    """The directory of a data set's version."""
    remedy = "see docs/imagenet.md"
    if data_dir is None:
        raise ValueError(f"`data_dir` (=None) must name a TFDS directory with {name}: {remedy}")
    path, _, version = name.partition(":")
    home = Path(data_dir, path)
    if not home.is_dir():
        there = (
            sorted(p.name for p in Path(data_dir).iterdir() if p.is_dir()) if Path(data_dir).is_dir() else []
        )
        above = next((p for p in Path(data_dir).absolute().parents if (p / path).is_dir()), None)
        if above:
            remedy = f"give the directory above, {str(above)!r}"
        raise ValueError(
            f"`data_dir` (={str(data_dir)!r}) lacks {path} (it holds {', '.join(there) or 'nothing'}): {remedy}"
        )
    versions = [p.name for p in home.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", p.name)]
    versions.sort(key=lambda text: tuple(map(int, text.split("."))))
    if not versions or (version and version not in versions):
        raise ValueError(
            f"{home} lacks version {version or 'N.N.N'} (it holds {', '.join(versions) or 'none'}): {remedy}"
        )
    directory = home / (version or versions[-1])
    if not (directory / "dataset_info.json").is_file():
        raise ValueError(f"{directory} lacks dataset_info.json: it is incomplete, {remedy}")
    return directory


def _image_and_label(directory: Path, info: Any, tfds: Any) -> tuple[str, str]:
    """Names of the features that a classifier takes and gives."""
    kinds = {key: type(feature) for key, feature in info.features.items()}
    keys = info.supervised_keys or kinds
    image = next((key for key in keys if kinds.get(key) is tfds.features.Image), None)
    label = next((key for key in keys if kinds.get(key) is tfds.features.ClassLabel), None)
    if image is None or label is None:
        raise ValueError(f"{directory} is no image classification set: its features are {', '.join(kinds)}")
    return image, label


# -- folders -------------------------------------------------------------------------------------------------


class FolderSource:
    """Image files, one directory per class."""

    def __init__(self, root: Path, classes: Sequence[str], files: Sequence[Sequence[str]]):
        self._root = root
        self._classes = tuple(classes)
        # Arrays, since a million strings would take ten times the memory in every worker.
        self._labels = np.repeat(np.arange(len(files), dtype=np.int32), [len(names) for names in files])
        self._names = np.array([os.fsencode(name) for names in files for name in names], np.bytes_)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int, /) -> Example:
        label = int(self._labels[index])
        path = self._root / self._classes[label] / os.fsdecode(self._names[index])
        try:
            return Example(path.read_bytes(), label)
        except OSError as error:
            raise DamagedImage(f"{path}: {error.strerror}") from error

    def labelled(self) -> bool:
        """Whether its images have labels: directories tell."""
        return True

    def held_out(self) -> Int[np.ndarray, " image"]:
        """Indices to validate with: of each class the last tenth by file name, 50,000 in all at most.

        For ImageNet these are the published ones, 50 of each class [1].
        """
        counts = np.bincount(self._labels, minlength=len(self._classes))
        ends = np.cumsum(counts)
        most = _MAX_HELD_OUT // len(self._classes)
        nums = np.minimum(counts // 10, most)
        return np.concatenate([np.arange(end - num, end) for end, num in zip(ends, nums, strict=True)])


def _open_folder(path: Path) -> _Found:
    """Lists the files of an ImageFolder directory."""
    names = [name for names in _SPLITS.values() for name in names if (path / name).is_dir()]
    if "train" not in names:
        there = sorted(p.name for p in path.iterdir())[:5] if path.is_dir() else []
        raise ValueError(f"folder:{path} lacks {path / 'train'} (it holds {', '.join(there) or 'nothing'})")
    classes = sorted(entry.name for entry in os.scandir(path / "train") if entry.is_dir())
    return _Found(len(classes), None, {name: _list_split(path / name, classes) for name in names})


def _list_split(root: Path, classes: list[str]) -> FolderSource:
    """The files of one split; a class without any is an error, since torchvision would number classes otherwise."""
    unknown = {entry.name for entry in os.scandir(root) if entry.is_dir()} - set(classes)
    if unknown:
        raise ValueError(
            f"{root} has {len(unknown)} classes that train lacks, as {min(unknown)!r}: move them away"
        )
    files = []
    for name in classes:
        directory = root / name
        entries = os.scandir(directory) if directory.is_dir() else ()
        files.append(sorted(e.name for e in entries if os.path.splitext(e.name)[1].lower() in _EXTENSIONS))
    empty = [name for name, found in zip(classes, files, strict=True) if not found]
    if root.name == "train" and empty and len(empty) < len(classes):
        raise ValueError(
            f"{root / empty[0]} has no images, nor have {len(empty) - 1} other classes: remove them"
        )
    return FolderSource(root, classes, files)
