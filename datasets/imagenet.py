"""Packs ImageNet's official archives as TFDS `imagenet2012`, without TensorFlow.

Command line: `python -m datasets.imagenet --archives=DIR --data_dir=DIR`, where the first directory holds
ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from image-net.org. See docs/imagenet.md.

Images are stored as they are; TFDS itself converts 22 CMYK images and a PNG, which are left to `ghn_jax.images.decode`.
"""

import io
import json
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from datasets.tfds_layout import dataset_info
from ghn_jax.runtime import commands, outputs
from ghn_jax.runtime.errors import check_directory
from ghn_jax.runtime.open_files import allow_open_files

VERSION = "5.1.0"
ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}
SIZES = {"train": 1_281_167, "validation": 50_000}
"""Images of each split."""

SHARDS = {"train": 1024, "validation": 64}
"""Files that each split is divided over."""

Progress = Callable[[int, int], None]
"""Is told how many images are packed, and of how many."""


class _Image(NamedTuple):
    name: str
    synset: str
    data: bytes


def prepare_imagenet(data_dir: Path, archives: Path, progress: Progress = lambda done, num: None) -> Path:
    """Writes `data_dir`/imagenet2012/5.1.0, which `ghn_jax.images.sources` reads, and returns that directory.

    Args:
      data_dir: TFDS directory, made if missing; needs 155 GB.
      archives: directory with the two archives.
      progress: follows the packing.

    Raises:
      ValueError: the data set is there already, or an archive is missing, damaged or incomplete.
      OSError: the directory cannot be written.
    """
    directory = data_dir / "imagenet2012" / VERSION
    if directory.exists():
        raise ValueError(f"`data_dir` (={str(data_dir)!r}) already has {directory}: remove it first")
    check_directory("archives", archives, f"put {' and '.join(ARCHIVES.values())} there, from image-net.org")
    for name in ARCHIVES.values():
        if not (archives / name).is_file():
            raise ValueError(f"`archives` (={str(archives)!r}) lacks {name}: get it from image-net.org")
    synsets, validation_synsets = (_shipped_lines(name) for name in ("labels.txt", "validation_labels.txt"))
    outputs.check_directory("data_dir", data_dir)
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and then renamed, so that a directory of that name is always whole.
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix="incomplete.") as scratch:
        partial = Path(scratch, VERSION)
        partial.mkdir()
        features = tfds.features.FeaturesDict(
            {
                "file_name": tfds.features.Text(),
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=synsets),
            }
        )
        images = {
            "train": _training_images(archives / ARCHIVES["train"]),
            "validation": _validation_images(archives / ARCHIVES["validation"], validation_synsets),
        }
        splits = []
        for split in images:
            lengths, size = _pack(partial, split, images[split], features, progress)
            splits.append({"name": split, "shardLengths": [str(n) for n in lengths], "numBytes": str(size)})
        features.save_config(str(partial))
        info = dataset_info(
            "imagenet2012",
            VERSION,
            "ILSVRC 2012: photographs in 1,000 classes.",
            "https://image-net.org/",
            "tensorflow_datasets.datasets.imagenet2012.imagenet2012_dataset_builder",
            splits,
        )
        (partial / "dataset_info.json").write_text(json.dumps(info, indent=2))
        partial.rename(directory)
    return directory


def _shipped_lines(name: str) -> list[str]:
    """Lines of a file that comes with TFDS."""
    return Path(tfds.core.tfds_path(f"datasets/imagenet2012/{name}")).read_text().split()


def _training_images(archive: Path) -> Iterator[_Image]:
    """Images of the training archive, which holds an archive per synset."""
    with tarfile.open(archive, "r:") as outer:
        for member in outer:
            content = outer.extractfile(member)
            assert content is not None
            with tarfile.open(fileobj=io.BytesIO(content.read()), mode="r:") as inner:
                for name, data in _files(inner):
                    yield _Image(name, Path(member.name).stem, data)


def _validation_images(archive: Path, synsets: Sequence[str]) -> Iterator[_Image]:
    """Images of the validation archive; `synsets` has those of the images in the order of their names."""
    with tarfile.open(archive, "r:") as tar:
        names = sorted(Path(name).name for name in tar.getnames())
        synset_of = dict(zip(names, synsets, strict=False))
        for name, data in _files(tar):
            yield _Image(name, synset_of[name], data)


def _files(tar: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in tar:
        content = tar.extractfile(member)
        if content is not None:
            yield Path(member.name).name, content.read()


def _pack(
    directory: Path, split: str, images: Iterator[_Image], features: Any, progress: Progress
) -> tuple[list[int], int]:
    """Writes the shards of a split; returns their lengths and the number of bytes."""
    num = SHARDS[split]
    allow_open_files(num)
    paths = [directory / f"imagenet2012-{split}.array_record-{i:05}-of-{num:05}" for i in range(num)]
    # One example per group, as TFDS has it; JPEG does not compress further.
    writers = [ArrayRecordWriter(str(path), "group_size:1,uncompressed") for path in paths]
    serializer = ExampleSerializer(features.get_serialized_info())
    synsets = features["label"]
    lengths, size, done = [0] * num, 0, 0
    try:
        for image in images:
            shard = zlib.crc32(image.name.encode()) % num
            label = synsets.str2int(image.synset)
            record = serializer.serialize_example(
                {"file_name": image.name, "image": image.data, "label": label}
            )
            writers[shard].write(record)
            lengths[shard] += 1
            size += len(record)
            done += 1
            progress(done, SIZES[split])
    except (tarfile.TarError, EOFError, KeyError, ValueError) as error:
        raise ValueError(
            f"{ARCHIVES[split]} is damaged after {done} images: {error}; get it again"
        ) from error
    finally:
        for writer in writers:
            writer.close()
    if done != SIZES[split]:
        raise ValueError(f"{ARCHIVES[split]} has {done} of {SIZES[split]} images: get it again")
    return lengths, size


def prepare(archives: Path, data_dir: Path) -> None:
    """Packs ImageNet's official archives as TFDS imagenet2012, without TensorFlow.

    Args:
      archives: directory with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar.
      data_dir: TFDS directory to write it to; needs 155 GB.
    """

    def show(done: int, num: int) -> None:
        if done % 1000 == 0 or done == num:
            end = "\n" if done == num else "\r"
            print(f"{done:,} of {num:,} images", end=end, file=sys.stderr, flush=True)

    print(f"wrote {prepare_imagenet(data_dir, archives, show)}")


def main() -> None:
    """Runs the command line."""
    commands.call("python -m datasets.imagenet", {"": prepare})


if __name__ == "__main__":
    main()
