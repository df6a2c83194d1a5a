"""Image sets in folders: PATH/{train,val}/CLASS/.../*.jpg, classes and order of images as torchvision's ImageFolder.

A set of training images alone may also be PATH/CLASS/.../*.jpg.

[1] facebookresearch/ppuda, vision/imagenet.py: the last 50 training images of each class are held out for validation.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from ghn_jax.images.examples import MAX_HELD_OUT, DamagedImage, Example, Found
from ghn_jax.images.splits import split_names
from ghn_jax.runtime.errors import check_directory, some

EXTENSIONS = frozenset(
    [
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".avif", ".jp2", ".j2k"),
        *(".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm"),
    ]
)
"""Of files that are images; others are passed over, and told."""


class FolderSource:
    """Image files, one directory per class."""

    def __init__(self, root: Path, classes: Sequence[str], files: Sequence[Sequence[str]]):
        """`files` are those of each class, as paths from its directory on."""
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
            return Example(path.read_bytes(), label, str(path))
        except OSError as error:
            raise DamagedImage(f"{path}: {error.strerror}") from error

    def labelled(self) -> bool:
        """Whether its images have labels: directories tell."""
        return True

    def held_out(self) -> Int[np.ndarray, " image"]:
        """Indices to validate with: of each class the last tenth by file name, 50,000 in all at most.

        If no class has ten images, it is every tenth image of all. For ImageNet these are the published ones, 50 of
        each class [1].
        """
        ends, nums = self._held_out_by_class()
        if not nums.any():
            return np.arange(9, len(self), 10)
        return np.concatenate([np.arange(end - num, end) for end, num in zip(ends, nums, strict=True)])

    def held_out_to_test(self) -> Int[np.ndarray, " image"]:
        """Indices of others to test with: as many of each class, drawn at random."""
        ends, nums = self._held_out_by_class()
        if not nums.any():
            return np.arange(4, len(self), 10)
        random, starts = np.random.default_rng(0), [0, *ends[:-1]]
        drawn = [
            start + random.permutation(end - num - start)[:num]
            for start, end, num in zip(starts, ends, nums, strict=True)
        ]
        return np.sort(np.concatenate(drawn))

    def _held_out_by_class(self) -> tuple[Int[np.ndarray, " label"], Int[np.ndarray, " label"]]:
        """Where the images of each class end, and how many of them are held out."""
        counts = np.bincount(self._labels, minlength=len(self._classes))
        return np.cumsum(counts), np.minimum(counts // 10, MAX_HELD_OUT // len(self._classes))

    def fingerprint(self) -> str:
        """Of the names of all files and their classes."""
        digest = hashlib.sha256("\0".join(self._classes).encode(errors="surrogateescape"))
        digest.update(self._labels.tobytes())
        digest.update(self._names.tobytes())
        return digest.hexdigest()


def open_folder(path: Path) -> Found:
    """Lists the files of an ImageFolder directory, or of one that holds folders of images, one for each class.

    Raises ValueError for one that is neither, with two directories for one split, or with classes that do not fit.
    """
    remedy = "put a folder of images for each class into train"
    check_directory("dataset", path, remedy)
    there = sorted(_directories(path))
    roots = {split: path / name for split, name in split_names(f"folder:{path}", there).items()}
    notes = []
    if not roots and there and all(_holds_images(path / name) for name in there):
        notes.append(
            f"{path} has no folder train: the classes are the {len(there)} folders in it, {some(there)}"
        )
        roots, there = {"train": path}, []
    if "train" not in roots:
        raise ValueError(
            f"folder:{path} lacks {path / 'train'} (it holds {', '.join(there[:5]) or 'no directories'}): {remedy}"
        )
    classes = tuple(sorted(_directories(roots["train"])))
    listed = {split: _list_split(root, split, classes) for split, root in roots.items()}
    sources = {split: FolderSource(roots[split], classes, files) for split, (files, _) in listed.items()}
    passed_over = [name for _, others in listed.values() for name in others]
    if passed_over:
        notes.append(f"passed over, since they are no images ({len(passed_over)}): {some(passed_over)}")
    unused = [name for name in there if path / name not in roots.values()]
    if unused:
        notes.append(f"directories beside train are not used: {some(unused)}")
    digest = hashlib.sha256(
        "".join(split + sources[split].fingerprint() for split in sorted(sources)).encode()
    )
    return Found(classes, (None, None, 3), dict(sources), digest.hexdigest()[:16], tuple(notes))


class _Listed(NamedTuple):
    files: list[list[str]]
    passed_over: list[str]


def _list_split(root: Path, split: str, classes: Sequence[str]) -> _Listed:
    """The files of one split; a class without any in train is an error, as with torchvision."""
    unknown = set(_directories(root)) - set(classes)
    if unknown:
        raise ValueError(
            f"`dataset` (={str(root)!r}) has classes that train lacks ({len(unknown)}, as {min(unknown)!r}): move them "
            "away"
        )
    passed_over = [
        str(root / entry.name) for entry in os.scandir(root) if entry.is_file() and not _hidden(entry.name)
    ]
    files = []
    for name in classes:
        directory = root / name
        images = []
        for file in _walk(directory, "", ()) if directory.is_dir() else ():
            if _is_image(file):
                images.append(file)
            else:
                passed_over.append(str(directory / file))
        files.append(sorted(images, key=os.path.split))  # directory by directory
    empty = [name for name, found in zip(classes, files, strict=True) if not found]
    if split == "train" and empty and len(empty) < len(classes):
        raise ValueError(
            f"`dataset` (={str(root)!r}) has classes without images ({len(empty)}, as {empty[0]!r}): remove them"
        )
    return _Listed(files, passed_over)


def _walk(directory: Path, inside: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Paths, from a class' directory on, of the files in it and in directories in it; links are followed once."""
    here = os.stat(directory)
    place = (here.st_dev, here.st_ino)
    if place in above:
        return
    with os.scandir(directory) as entries:
        for entry in entries:
            if _hidden(entry.name):
                continue
            name = f"{inside}{entry.name}"
            if entry.is_dir():
                yield from _walk(directory / entry.name, f"{name}/", (*above, place))
            elif entry.is_file() or entry.is_symlink():  # a pipe would be waited for
                yield name


def _directories(path: Path) -> list[str]:
    return [entry.name for entry in os.scandir(path) if entry.is_dir() and not _hidden(entry.name)]


def _holds_images(path: Path) -> bool:
    """Whether there are images in it, in no directory of their own."""
    with os.scandir(path) as entries:
        return any(_is_image(entry.name) and entry.is_file() for entry in entries)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not _hidden(os.path.basename(name))


def _hidden(name: str) -> bool:
    """Whether programs put it there for themselves, as .ipynb_checkpoints, .DS_Store, ._image.jpg of a Mac."""
    return name.startswith(".") or name == "__MACOSX"
