"""Image sets by name: small ones that stay on the device, large ones that are streamed."""

import dataclasses
import pathlib

from ghn_jax.images import resident, sources
from ghn_jax.images.resident import DATASETS, ImageDataset
from ghn_jax.images.sources import STREAMED, StreamedDataset
from ghn_jax.runtime.errors import expand_home, unknown_name


def check_name(name: str) -> None:
    """Raises ValueError, with the nearest names, for one that `load` does not know."""
    if name not in DATASETS and name != "imagenet" and name.partition(":")[0] not in ("tfds", "folder"):
        raise unknown_name("dataset", name, [*DATASETS, *STREAMED])


def absolute(name: str) -> str:
    """The same name, in a form that means the same in another working directory.

    Raises ValueError for one that `load` does not know.
    """
    check_name(name)
    kind, _, path = name.partition(":")
    return (
        f"folder:{expand_home('dataset', pathlib.Path(path)).absolute()}"
        if kind == "folder" and path
        else name
    )


def load(
    name: str, data_dir: pathlib.Path | None = None, image_size: int | None = None, num_workers: int = 0
) -> ImageDataset | StreamedDataset:
    """Opens an image set: one of `DATASETS`, or of the forms in `STREAMED`.

    Args:
      image_size: height and width that networks are to see, by default nearly that of the images.
      num_workers: processes that will decode its images.

    Raises ValueError if it is unknown, is not there, or cannot be used (see `resident.load`, `sources.open_dataset`),
    and for an argument that it leaves without effect.
    """
    check_name(name)
    if data_dir is not None and (name == "digits" or name.startswith("folder:")):
        raise ValueError(f"`data_dir` (={str(data_dir)!r}) has no effect with --dataset={name}: leave it out")
    if num_workers and name in DATASETS:
        raise ValueError(
            f"`num_workers` (={num_workers}) has no effect with {name}, whose images are in memory: leave it out"
        )
    if name in DATASETS:
        dataset = resident.load(name, str(data_dir) if data_dir else None)
        return dataclasses.replace(dataset, image_size=image_size or dataset.image_size)
    return sources.open_dataset(name, data_dir, image_size)
