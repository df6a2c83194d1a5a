"""Options of an evaluation."""

import dataclasses
import pathlib
from typing import Any

from ghn_jax.deepnets.image_sizes import check_image_size
from ghn_jax.deepnets.sampling import NAMED, PREDEFINED, SPLITS
from ghn_jax.evaluation.accuracy import BATCH_SIZE
from ghn_jax.images.identity import changed_classes
from ghn_jax.images.loading import absolute, load
from ghn_jax.images.resident import ImageDataset
from ghn_jax.images.sources import StreamedDataset
from ghn_jax.runtime import outputs
from ghn_jax.runtime.errors import LARGEST, check_range, expand_home, unknown_name
from ghn_jax.targets import NAMES

TABLE = "table"
"""The `--split` that stands for all of the published table."""

_CELLS = (*NAMED, *PREDEFINED)
"""Architectures of DeepNets-1M that have names."""


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
    num_images: int | None = None
    """Test on so many of the images alone, at least 64, the same for all architectures: a full-width network takes a
    minute and more a core for 10,000 of 32 pixels."""
    seed: int = 0
    """Of the sampled splits."""
    export: pathlib.Path | None = None
    """Writes a model's predicted parameters: FILE.safetensors (PyTorch's names, layouts), else an Orbax checkpoint."""
    draw: pathlib.Path | None = None
    """Draws a model's graph: FILE.svg."""
    results: pathlib.Path | None = None
    """JSON lines, one an architecture [runs/eval/CKPT-WEIGHTS-DATASET-SPLIT.jsonl]."""
    num_workers: int = 0
    """Processes that decode the images of a streamed set; 0 decodes in threads."""
    compilation_cache: pathlib.Path | None = None
    """Where compiled programs are kept between runs [~/.cache/ghn_jax/xla]."""

    def resolve(self) -> "EvaluateOptions":
        """Checks them.

        Raises ValueError for an unknown name, a number out of range, an option that would have no effect, and a file
        that could not be written.
        """
        options = dataclasses.replace(
            self,
            ckpt=str(expand_home("ckpt", pathlib.Path(self.ckpt)))
            if self.ckpt.startswith("~")
            else self.ckpt,
            dataset=self.dataset and absolute(self.dataset),
        )
        check_range("num_archs", self.num_archs, 1)
        check_range("channels", self.channels, 16)
        if self.channels and self.channels % 16:
            raise ValueError(f"`channels` (={self.channels}) must be a multiple of 16")
        check_range("num_images", self.num_images, BATCH_SIZE)
        check_range("seed", self.seed, 0)
        check_range("num_workers", self.num_workers, 0, 1024)
        check_range("noise", self.noise, 0, LARGEST)
        options._check_used()
        if self.split in SPLITS and self.deepnets_dir is None:
            check_range("num_archs", self.num_archs, 1, SPLITS[self.split].size)
        if options.export is not None and options.export.suffix not in ("", ".safetensors"):
            raise ValueError(
                f"`export` (={str(options.export)!r}) ends in {options.export.suffix}: give FILE.safetensors, or the "
                "name of a new directory, without an ending"
            )
        if options.export is not None and options.export.exists() and options.export.suffix == "":
            raise ValueError(
                f"`export` (={str(options.export)!r}) exists: give a new directory, or FILE.safetensors"
            )
        if options.draw is not None and options.draw.suffix != ".svg":
            raise ValueError(f"`draw` (={str(options.draw)!r}) must end in .svg")
        for name in ("export", "draw", "results"):
            outputs.check(name, getattr(options, name))
        return options

    def _check_used(self) -> None:
        """Raises ValueError for an option that the architectures leave without effect."""
        if self.split not in (*SPLITS, "predefined", TABLE):
            raise unknown_name("split", self.split, [*SPLITS, "predefined", TABLE])
        unused = {"export", "draw"}
        if self.arch and not (self.arch.isdecimal() or is_model(self.arch) or self.arch.lower() in _CELLS):
            raise unknown_name("arch", self.arch, [*NAMED, *NAMES])
        if self.arch is None:
            kind = f"--split={self.split}"
            if self.split == "predefined":
                unused |= {"channels", "seed", "num_archs", "deepnets_dir"}
        else:
            kind = f"--arch={self.arch}"
            unused |= {"num_archs"}
            if not self.arch.isdecimal():
                unused |= {"channels", "seed", "deepnets_dir"}
                if self.split not in ("val", "test"):
                    raise ValueError(
                        f"`split` (={self.split!r}) says which images to test {self.arch} on: give test or val"
                    )
            elif self.split in ("predefined", TABLE):
                raise ValueError(
                    f"`arch` (={self.arch}) is no place in --split={self.split}: leave one of them out"
                )
            unused -= {"export", "draw"} if is_model(self.arch) else set()
        if self.deepnets_dir is not None and "deepnets_dir" not in unused:
            kind, unused = f"{kind} and --deepnets_dir", unused | {"seed"}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in unused and value != field.default:
                needs = ": it needs a model, as --arch=resnet50" if field.name in ("export", "draw") else ""
                raise ValueError(
                    f"`{field.name}` (={value!s}) has no effect with {kind}{needs or ': leave it out'}"
                )


def is_model(arch: str) -> bool:
    """Whether `--arch` names a model, rather than an architecture of DeepNets-1M."""
    return arch in NAMES or ":" in arch


def open_images(options: EvaluateOptions, info: dict[str, Any]) -> tuple[str, ImageDataset | StreamedDataset]:
    """The set of images to evaluate on, and its name; `info` says how the GHN was trained.

    Raises ValueError for a set that cannot be opened, and a size that networks are not made for.
    """
    name = absolute(options.dataset or info.get("dataset", "digits"))
    trained = info.get("image_size") if name == info.get("dataset") else None
    image_size = trained if options.image_size is None else options.image_size
    if image_size is not None:
        check_image_size(image_size)
    dataset = load(name, options.data_dir, image_size, options.num_workers)
    trained_on = info.get("classes") if name == info.get("dataset") else None
    if trained_on is not None and (changes := changed_classes(trained_on, dataset.classes)):
        raise ValueError(
            f"`dataset` (={name!r}) is not as when `ckpt` (={options.ckpt!r}) was trained on it "
            f"({'; '.join(changes)}), whose labels would be others: name its folders as they were"
        )
    return name, dataset


def images_header(options: EvaluateOptions, dataset: ImageDataset | StreamedDataset) -> dict[str, Any]:
    """What tells the images of an evaluation from others of the same name, in a results file."""
    header: dict[str, Any] = {"image_size": options.image_size} if options.image_size else {}
    if isinstance(dataset, StreamedDataset):  # others are always the same
        header["fingerprint"] = dataset.fingerprint
    return header


def count_images(options: EvaluateOptions, dataset: ImageDataset | StreamedDataset) -> int:
    """How many images are tested on; ValueError if there are too few, or fewer than --num_images."""
    available = len(dataset.val if options.split == "val" else dataset.test)
    if available < BATCH_SIZE:
        raise ValueError(
            f"`dataset` (={options.dataset or 'that of its training'}) has {available} images to test on, and norms "
            f"take the statistics of {BATCH_SIZE}: give a --dataset with as many"
        )
    if options.num_images is not None and options.num_images > available:
        raise ValueError(
            f"`num_images` (={options.num_images}) are more than the {available} that there are: lower it, or leave it "
            "out"
        )
    return options.num_images or available
