"""Options of an evaluation."""

import dataclasses
import pathlib
from typing import Any

from ghn_jax.deepnets.image_sizes import check_image_size
from ghn_jax.images.loading import absolute, load
from ghn_jax.images.resident import ImageDataset
from ghn_jax.images.sources import StreamedDataset


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Predicts the parameters of architectures and tests them on images, without any gradient step.

    An interrupted evaluation goes on where it stopped when the same command is run again.
    """

    ckpt: str = "ghn2-digits"
    """A bundled or published GHN by name, a file of one, or the work directory of a training run."""
    dataset: str | None = None
    """Images to test on: digits, cifar10, imagenet, tfds:NAME or folder:PATH [those the GHN was trained on]."""
    data_dir: pathlib.Path | None = None
    """TFDS directory with the prepared dataset; digits and folder:PATH need none."""
    image_size: int | None = None
    """Height and width that images are resized to and networks are made for, 16 or a multiple of 32 [that of training
    on the same set; else nearly that of the images, 224 at most]."""
    split: str = "test"
    """val, test, wide, deep, dense, bnfree, search, predefined or train; table: those of the published table."""
    deepnets_dir: pathlib.Path | None = None
    """Directory of DeepNets-1M, whose architectures are taken instead of sampled ones: the official deepnets1m_*.hdf5
    with their meta files, or splits that datasets.deepnets1m wrote."""
    num_archs: int | None = None
    """Only the first so many architectures of the split."""
    arch: str | None = None
    """One architecture: its index in the split, darts, pdarts, vit, a model (resnet50), or package.module:factory."""
    channels: int | None = None
    """Overrides the channels that the split draws for its architectures."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on the images, of pixels in 0..1; published are 0.08 for CIFAR-10 and
    0.18 for ImageNet."""
    seed: int = 0
    """Of the sampled splits."""
    export: pathlib.Path | None = None
    """Writes a model's predicted parameters: FILE.safetensors (PyTorch's names, layouts), else an Orbax checkpoint."""
    draw: pathlib.Path | None = None
    """Draws a model's graph: FILE.svg."""
    results: pathlib.Path | None = None
    """JSON lines, one an architecture [runs/eval/CKPT-DATASET-SPLIT.jsonl]."""
    num_workers: int = 0
    """Processes that decode the images of a streamed set; 0 decodes in threads."""
    compilation_cache: pathlib.Path | None = None
    """Where compiled programs are kept between runs [~/.cache/ghn_jax/xla]."""


def open_images(options: EvaluateOptions, info: dict[str, Any]) -> tuple[str, ImageDataset | StreamedDataset]:
    """The set of images to evaluate on, and its name; `info` says how the GHN was trained.

    Raises ValueError for a set that cannot be opened, and a size that networks are not made for.
    """
    name = absolute(options.dataset or info.get("dataset", "digits"))
    trained = info.get("image_size") if name == info.get("dataset") else None
    image_size = trained if options.image_size is None else options.image_size
    if image_size is not None:
        check_image_size(image_size)
    return name, load(name, options.data_dir, image_size)
