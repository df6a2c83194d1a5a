"""Options of fine-tuning."""

import dataclasses
import os
import pathlib

from ghn_jax import pretrained
from ghn_jax.deepnets.architectures import NAMED
from ghn_jax.deepnets.image_sizes import check_image_size
from ghn_jax.finetuning.recipe import Recipe
from ghn_jax.finetuning.starts import RANDOM
from ghn_jax.runtime import outputs
from ghn_jax.runtime.errors import LARGEST, check_range


@dataclasses.dataclass(frozen=True)
class FinetuneOptions(Recipe):
    """Trains one network from random, predicted or earlier parameters, or compares such starts.

    Run the same command again to go on from the latest checkpoints in the work directory.
    """

    arch: str = "resnet18"
    """A model (resnet50), an index of --split, darts, pdarts, vit, package.module:factory or file.py:factory."""
    split: str = "test"
    """Split of DeepNets-1M that an index belongs to."""
    channels: int | None = None
    """Overrides the channels that the split draws for its architectures."""
    dataset: str = "digits"
    """digits, cifar10, imagenet, tfds:NAME or folder:PATH."""
    data_dir: pathlib.Path | None = None
    """TFDS directory with the prepared dataset; digits and folder:PATH need none."""
    image_size: int | None = None
    """Height and width that images are resized to and the network is made for, 16 or a multiple of 32 [nearly that of
    the images, 224 at most]."""
    shots: int | None = None
    """Train on so many images of each class, chosen by the seed, instead of all."""
    evaluate_on: str = "test"
    """Images to test on: test, or val, which are held out from the training images."""
    init: str = "random"
    """What to start from: random, a GHN (name or path), or the directory of an earlier run, that of its seed."""
    compare: str | None = None
    """Several starts, instead of --init: random,ghn2-digits."""
    seeds: int = 1
    """Train with so many seeds, from --seed on; the table has means and standard deviations."""
    picture: pathlib.Path | None = None
    """Draws accuracy against steps: FILE.png or FILE.svg (needs matplotlib)."""
    workdir: pathlib.Path | None = None
    """Where checkpoints, metrics and the table go [runs/finetune-ARCH-DATASET]."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    log_every: int = 50
    """Steps between two progress lines; metrics.jsonl has every step."""
    num_workers: int = 0
    """Processes that decode the images of a streamed set; 0 decodes in threads."""
    compilation_cache: pathlib.Path | None = None
    """Where compiled programs are kept between runs [~/.cache/ghn_jax/xla]."""

    def resolve(self) -> "FinetuneOptions":
        """Expands the paths of starts, then checks."""
        starts = {name: getattr(self, name) for name in ("init", "compare")}
        given = {name: _expanded(value) for name, value in starts.items() if value is not None}
        options = dataclasses.replace(self, **given)
        options.check()
        return options

    def check(self) -> None:
        """Raises ValueError for an unknown name, a number out of range, and an option that would have no effect."""
        super().check()
        for name in ("seeds", "checkpoint_every", "log_every", "shots"):
            check_range(name, getattr(self, name), 1)
        check_range("seeds", self.seeds, 1, LARGEST - self.seed + 1)
        check_range("num_workers", self.num_workers, 0, 1024)
        self._check_used()
        if self.image_size is not None:
            check_image_size(self.image_size)
        if self.evaluate_on not in ("test", "val"):
            raise ValueError(f"`evaluate_on` (={self.evaluate_on!r}) must be test or val")
        if self.picture is not None and self.picture.suffix not in (".png", ".svg", ".pdf"):
            raise ValueError(f"`picture` (={str(self.picture)!r}) must end in .png, .svg or .pdf")
        outputs.check("picture", self.picture)
        if not self.starts():
            raise ValueError(
                f"`compare` (={self.compare!r}) names no start: give some, as random,ghn2-digits"
            )
        if self.compare is not None and self.init != RANDOM:
            raise ValueError(f"`init` (={self.init!r}) and `compare` (={self.compare!r}): give one of them")
        for start in self.starts():  # all of them, before the first is trained from
            pretrained.check_name(start, "init" if self.compare is None else "compare", [RANDOM])

    def _check_used(self) -> None:
        """Raises ValueError for an option that others leave without effect."""
        of_a_split = self.arch.isdecimal()
        if not of_a_split and self.split != FinetuneOptions.split:
            raise ValueError(f"`split` (={self.split!r}) has no effect with --arch={self.arch}: leave it out")
        if self.channels is not None and not of_a_split and self.arch not in NAMED:
            raise ValueError(
                f"`channels` (={self.channels}) has no effect with --arch={self.arch}: leave it out"
            )
        for name in ("noise", "orthogonal"):
            if getattr(self, name) and self.starts() == [RANDOM]:
                raise ValueError(
                    f"`{name}` (={getattr(self, name)}) has no effect with --init=random: it changes predicted weights"
                )

    def starts(self) -> list[str]:
        """What to start from, in order and without repetition."""
        names = (self.init if self.compare is None else self.compare).split(",")
        return list(dict.fromkeys(name.strip() for name in names if name.strip()))


def _expanded(starts: str) -> str:
    """The same starts, with `~` as the home directory."""
    return ",".join(os.path.expanduser(name.strip()) for name in starts.split(","))
