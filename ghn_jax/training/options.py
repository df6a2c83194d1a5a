"""Options of a meta-training run, with the published settings as defaults."""

import dataclasses
import pathlib
from typing import Any

from datasets.images import DATASETS
from ghn_jax.config import PRESETS
from ghn_jax.errors import unknown_name

EXECUTORS = ("blocks",)

_DEFAULTS = {
    "cifar10": {"meta_batch_size": 8, "batch_size": 64, "epochs": 300},  # published
    "digits": {"meta_batch_size": 4, "batch_size": 32, "epochs": 5},  # minutes on two cores
}


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Meta-trains a GHN: it learns to predict the parameters of networks that classify images.

    Run the same command again to go on from the latest checkpoint in the work directory.
    """

    dataset: str = "digits"
    """digits (1,797 scans that come with scikit-learn) or cifar10."""
    data_dir: pathlib.Path | None = None
    """TFDS directory with the prepared dataset; digits needs none."""
    preset: str = "ghn2"
    """ghn2, ghn1 or mlp."""
    meta_batch_size: int | None = None
    """Architectures per step [cifar10: 8, digits: 4, ghn1: 1]."""
    batch_size: int | None = None
    """Images per step; every architecture of the step sees the same ones [cifar10: 64, digits: 32]."""
    epochs: int | None = None
    """Passes over the images; at 2/3 and 5/6 the learning rate drops tenfold [cifar10: 300, digits: 5]."""
    steps: int | None = None
    """Stop after this many steps, even if the epochs are not over."""
    learning_rate: float = 1e-3
    """Of Adam."""
    weight_decay: float = 1e-5
    """L2, added to the gradient."""
    clip: float = 5.0
    """Largest global norm of the gradient."""
    seed: int = 0
    """Of weights, architectures and images."""
    workdir: pathlib.Path | None = None
    """Where checkpoints and metrics go [runs/PRESET-DATASET]."""
    executor: str = "blocks"
    """How networks are run: blocks compiles each kind of block once."""
    log_every: int = 10
    """Steps between two progress lines; metrics.jsonl has every step."""
    checkpoint_every: int = 100
    """Steps between two checkpoints."""
    val_archs: int = 4
    """Architectures of the split val that judge each checkpoint, to keep the best; 0 keeps the latest alone."""
    max_skipped: int = 10
    """Give up after this many steps in a row with a loss or gradient that is not finite."""
    compilation_cache: pathlib.Path | None = None
    """Where compiled programs are kept between runs [~/.cache/ghn_jax/xla]."""

    def resolve(self) -> "TrainOptions":
        """Fills in the defaults that depend on other options.

        Raises ValueError for an unknown name and for a number out of range.
        """
        if self.dataset not in DATASETS:
            raise unknown_name("dataset", self.dataset, DATASETS)
        if self.preset not in PRESETS:
            raise unknown_name("preset", self.preset, PRESETS)
        if self.executor not in EXECUTORS:
            raise unknown_name("executor", self.executor, EXECUTORS)
        defaults: dict[str, Any] = dict(_DEFAULTS[self.dataset])
        defaults |= {"meta_batch_size": 1} if self.preset == "ghn1" else {}
        defaults |= {"workdir": pathlib.Path("runs") / f"{self.preset}-{self.dataset}"}
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        options = dataclasses.replace(self, **missing)
        for name in (
            "meta_batch_size",
            "batch_size",
            "epochs",
            "steps",
            "log_every",
            "checkpoint_every",
            "max_skipped",
        ):
            value = getattr(options, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` (={value}) must be at least 1")
        for name in ("learning_rate", "clip"):
            if not getattr(options, name) > 0:
                raise ValueError(f"`{name}` (={getattr(options, name)}) must be positive")
        for name in ("weight_decay", "val_archs", "seed"):
            if getattr(options, name) < 0:
                raise ValueError(f"`{name}` (={getattr(options, name)}) must not be negative")
        return options

    def identity(self) -> dict[str, Any]:
        """What two runs must share for one to go on from the other."""
        names = (
            "dataset",
            "preset",
            "meta_batch_size",
            "batch_size",
            "epochs",
            "learning_rate",
            "weight_decay",
        )
        return {name: getattr(self, name) for name in (*names, "clip", "seed", "executor")}
