"""Options of a meta-training run, with the published settings as defaults."""

import dataclasses
import pathlib
import re
from typing import Any

from ghn_jax.deepnets.image_sizes import check_image_size
from ghn_jax.deepnets.sampling import DRAWS, SPLITS
from ghn_jax.evaluation.accuracy import BATCH_SIZE
from ghn_jax.images.loading import absolute
from ghn_jax.models.config import PRESETS
from ghn_jax.runtime.errors import LARGEST, check_range, expand_home, unknown_name
from ghn_jax.training import recipes
from ghn_jax.training.executors import EXECUTORS, PRECISIONS

_DEFAULTS = {
    "cifar10": {"meta_batch_size": 8, "batch_size": 64, "epochs": 300},  # published
    "imagenet": {"meta_batch_size": 8, "batch_size": 256, "epochs": 150, "label_smoothing": 0.1},  # published
    "": {"meta_batch_size": 8, "epochs": 150, "label_smoothing": 0.1},  # as for imagenet
    "digits": {  # minutes on two cores
        "meta_batch_size": 4,
        "batch_size": 64,
        "epochs": 9,
        "recipe": "efficient",
        "draw": "narrow",
        "image_size": 16,
    },
}
"""Settings by dataset; "" are those of all others."""

_MAX_BATCH_SIZE = 256
_STEPS_PER_EPOCH = 10
"""Without a batch size of its own, a set has the largest power of two that leaves as many steps an epoch."""

_VAL_ARCHS = 4

_AS_GHN3 = {"recipe": "ghn3", "draw": "wider"}
_DEFAULTS_OF_FAMILY = {"ghn3": _AS_GHN3, "logah": _AS_GHN3}
_DEFAULTS_OF_PAIR = {("ghn3", "imagenet"): {"batch_size": 128, "epochs": 75}}  # published
_DEFAULTS_OF_PRESET = {"ghn1": {"meta_batch_size": 1}, "ghn3-xl": {"meta_batch_size": 16}}
"""Settings by the family of the preset, by both, and by preset; they overrule those by dataset."""

_AT_LEAST_1, _FROM_0 = (1, LARGEST), (0, LARGEST)
_RANGES = {
    "meta_batch_size": (1, 4096),
    "batch_size": _AT_LEAST_1,
    "micro_batch_size": _AT_LEAST_1,
    "epochs": _AT_LEAST_1,
    "steps": _AT_LEAST_1,
    "learning_rate": (0, 10.0, True),
    "weight_decay": (0, 10.0),
    "clip": (0, 1e6, True),
    "seed": _FROM_0,
    "num_workers": (0, 1024),
    "log_every": _AT_LEAST_1,
    "checkpoint_every": _AT_LEAST_1,
    "val_archs": (0, SPLITS["val"].size),
    "max_skipped": _AT_LEAST_1,
}
"""Least and most, and whether it must be above the least."""


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Meta-trains a GHN: it learns to predict the parameters of networks that classify images.

    Run the same command again to go on from the latest checkpoint in the work directory.
    """

    dataset: str = "digits"
    """digits (1,797 scans that come with scikit-learn), cifar10, imagenet, tfds:NAME or folder:PATH."""
    data_dir: pathlib.Path | None = None
    """TFDS directory with the prepared dataset; digits and folder:PATH need none."""
    image_size: int | None = None
    """Height and width that images are resized to and networks are made for, 16 or a multiple of 32 [nearly that of
    the images, 224 at most; digits: 16]."""
    preset: str = "ghn2"
    """ghn2, ghn1, mlp, ghn3-t, -s, -l, -xl, or logah-t, -s."""
    deepnets_dir: pathlib.Path | None = None
    """Directory of DeepNets-1M, whose training architectures are taken instead of sampled ones: the official
    deepnets1m_train.hdf5 with its meta file, or a split that datasets.deepnets1m wrote."""
    meta_batch_size: int | None = None
    """Architectures per step [8, digits: 4, ghn1: 1, ghn3-xl: 16]."""
    batch_size: int | None = None
    """Images that an architecture sees in a step [cifar10 and digits: 64, imagenet: 256, with ghn3: 128; others: 256,
    or less to have ten steps an epoch]."""
    micro_batch_size: int | None = None
    """Images that a network runs on at a time, if not all; a divisor of the batch. Saves memory; batch norm uses the
    statistics of these images."""
    recipe: str | None = None
    """How it learns: published, as in the paper of GHN-2, ghn3, as in that of GHN-3, or efficient, for runs of few
    networks [published, digits: efficient, with ghn3: ghn3]. The page docs/recipes.md has what they consist of."""
    init: str | None = None
    """GHN whose weights to start from, rather than as the recipe says: a name, a file or the workdir of a run, for as
    many classes."""
    draw: str | None = None
    """Architectures: published, of 32 to 128 channels; wider, with more where images are large; norm_free, of which one
    in eight has no batch norm; lighter, the same without the heaviest 30 %; or narrow, of 32 channels and the
    lighter half [published, digits: narrow, with ghn3: wider]."""
    epochs: int | None = None
    """Passes over the images, as one architecture sees them [cifar10: 300, digits: 9, others: 150; imagenet with
    ghn3: 75]."""
    steps: int | None = None
    """Stop after this many steps, even if the epochs are not over."""
    learning_rate: float | None = None
    """The highest one [of the recipe]."""
    weight_decay: float | None = None
    """Of all weights [of the recipe]."""
    label_smoothing: float | None = None
    """Share of each target spread over all classes [cifar10 and digits: 0, others: 0.1]."""
    clip: float | None = None
    """Largest global norm of the gradient [of the recipe]."""
    seed: int = 0
    """Of weights, architectures and images."""
    workdir: pathlib.Path | None = None
    """Where checkpoints and metrics go [runs/PRESET-DATASET]."""
    num_workers: int = 0
    """Processes that decode the images of a streamed set; 0 decodes in threads."""
    executor: str = "auto"
    """How networks are run: blocks, each kind of block compiled once; fused, one program per family; auto is blocks."""
    precision: str = "float32"
    """What networks compute in: float32 or bfloat16; parameters, gradients and the GHN are float32 all the same."""
    log_every: int = 10
    """Steps between two progress lines; metrics.jsonl has every step."""
    checkpoint_every: int = 100
    """Steps between two checkpoints."""
    val_archs: int | None = None
    """Architectures of the split val that judge each checkpoint, to keep the best; 0 keeps the latest alone [4;
    sets with too few images: 0]."""
    max_skipped: int = 10
    """Give up after this many steps in a row with a loss or gradient that is not finite."""
    change_options: bool = False
    """Go on from a checkpoint although the run began with other options."""
    coordinator: str | None = None
    """To train with several processes: HOST:PORT of process 0, or auto on SLURM, Open MPI and TPU."""
    num_processes: int | None = None
    """How many processes there are; start each with the same command."""
    process_id: int | None = None
    """Which of them this one is, from 0."""
    compilation_cache: pathlib.Path | None = None
    """Where compiled programs are kept between runs [~/.cache/ghn_jax/xla]."""

    def resolve(self) -> "TrainOptions":
        """Fills in the defaults that depend on other options.

        Raises ValueError for an unknown name and for a number out of range.
        """
        dataset = absolute(self.dataset)
        if self.preset not in PRESETS:
            raise unknown_name("preset", self.preset, PRESETS)
        if self.draw is not None and self.draw not in DRAWS:
            raise unknown_name("draw", self.draw, DRAWS)
        if self.executor not in EXECUTORS:
            raise unknown_name("executor", self.executor, EXECUTORS)
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        if self.image_size is not None:
            check_image_size(self.image_size)
        defaults: dict[str, Any] = {"label_smoothing": 0.0, "recipe": "published", "draw": "published"}
        family = self.preset.partition("-")[0]
        defaults |= _DEFAULTS.get(self.dataset, _DEFAULTS[""])
        defaults |= _DEFAULTS_OF_FAMILY.get(family, {}) | _DEFAULTS_OF_PAIR.get((family, self.dataset), {})
        defaults |= _DEFAULTS_OF_PRESET.get(self.preset, {})
        defaults |= {
            "workdir": pathlib.Path("runs") / re.sub(r"[^\w-]+", "_", f"{self.preset}-{self.dataset}")
        }
        recipe = recipes.recipe(self.recipe or defaults["recipe"])
        defaults |= {name: getattr(recipe, name) for name in ("learning_rate", "weight_decay", "clip")}
        given: dict[str, Any] = {name: value for name, value in vars(self).items() if value is not None}
        if self.init is not None:  # a path means the same elsewhere
            path = expand_home("init", pathlib.Path(self.init))
            given["init"] = str(path.absolute()) if len(path.parts) > 1 or path.exists() else self.init
        options = dataclasses.replace(self, **(defaults | given | {"dataset": dataset}))
        for name, limits in _RANGES.items():
            check_range(name, getattr(options, name), *limits)
        options._check_micro_batch()
        if not 0.0 <= (options.label_smoothing or 0.0) < 1.0:
            raise ValueError(f"`label_smoothing` (={options.label_smoothing}) must be in 0..1, below 1")
        return options

    def full_recipe(self) -> recipes.Recipe:
        """The recipe, with what these (resolved) options say otherwise."""
        assert self.recipe and self.learning_rate and self.weight_decay is not None and self.clip
        return dataclasses.replace(
            recipes.recipe(self.recipe),
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            clip=self.clip,
        )

    def fitted(self, num_train: int, num_val: int, image_size: int = 32) -> "TrainOptions":
        """Fills in the defaults that depend on the images, of options from `resolve`.

        Raises ValueError for a batch larger than the training set or not a multiple of a micro-batch, and for more
        architectures to validate than held-out images allow.
        """
        largest = max(1, min(_MAX_BATCH_SIZE, num_train // _STEPS_PER_EPOCH))
        batch_size = self.batch_size or 1 << largest.bit_length() - 1
        if batch_size > num_train:
            raise ValueError(
                f"`batch_size` (={batch_size}) exceeds the {num_train} training images: lower it"
            )
        val_archs = self.val_archs
        if val_archs is None:
            val_archs = _VAL_ARCHS if num_val >= BATCH_SIZE else 0
        if val_archs and num_val < BATCH_SIZE:
            raise ValueError(
                f"`val_archs` (={val_archs}) need {BATCH_SIZE} held-out images, and {self.dataset} has {num_val}: "
                "use --val_archs=0"
            )
        options = dataclasses.replace(self, batch_size=batch_size, val_archs=val_archs, image_size=image_size)
        options._check_micro_batch()
        return options

    def _check_micro_batch(self) -> None:
        if self.micro_batch_size and self.batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"`micro_batch_size` (={self.micro_batch_size}) must divide the batch size, {self.batch_size}"
            )

    def identity(self) -> dict[str, Any]:
        """What two runs must share for one to go on from the other."""
        names = (
            "dataset",
            "image_size",
            "preset",
            "meta_batch_size",
            "batch_size",
            "micro_batch_size",
            "recipe",
            "init",
            "draw",
            "epochs",
            "learning_rate",
            "weight_decay",
            "label_smoothing",
        )
        identity = {name: getattr(self, name) for name in (*names, "clip", "seed", "executor", "precision")}
        return identity | {"deepnets_dir": self.deepnets_dir and str(self.deepnets_dir)}
