"""Image sets of `ghn_jax.images` as data to train a network on."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from ghn_jax.evaluation.accuracy import BATCH_SIZE, accuracy
from ghn_jax.finetuning.data import Accuracy, Batch, Logits
from ghn_jax.images.damage import DamageList
from ghn_jax.images.resident import ImageDataset
from ghn_jax.images.sources import StreamedDataset
from ghn_jax.training.feed import Feed, open_feed


@dataclasses.dataclass
class FromDataset:
    """A named set, augmented and normalised as it is in meta-training."""

    dataset: ImageDataset | StreamedDataset
    split: str = "test"
    num_workers: int = 0
    workdir: pathlib.Path | None = None

    def __post_init__(self) -> None:
        size = self.dataset.image_size
        self.image_shape = (size, size, 3)
        self.num_images: int | None = len(self.dataset.train)
        self.num_classes: int | None = self.dataset.num_classes
        self.identity = self.dataset.identity.to_dict()
        self._feed: Feed | None = None
        self._not_tested = 0
        self._damage = DamageList(self.workdir and self.workdir / "damaged_images.txt")

    def batches(
        self, batch_size: int, seed: int, first: int, state: dict[str, Any]
    ) -> Callable[[int], Batch]:
        """As in `Data`."""
        key = jax.random.key(seed)
        self._feed = open_feed(
            self.dataset, batch_size, key, seed, first, state, self.num_workers, self._damage
        )
        return self._feed

    def test(self, logits: Logits) -> Accuracy | None:
        """As in `Data`."""
        held_out = self.dataset.val if self.split == "val" else self.dataset.test
        batch_size = min(BATCH_SIZE, len(held_out))  # of which nothing depends, with running statistics
        result = accuracy(
            logits, self.dataset, self.split, num_workers=self.num_workers, batch_size=batch_size
        )
        self._damage.add(result.damaged)
        self._not_tested = len(result.damaged)
        return Accuracy(result.top1, result.top5)

    @property
    def damage(self) -> str | None:
        """As in `Data`."""
        replaced = self._feed.damaged if self._feed is not None else 0
        if not replaced and not self._not_tested:
            return None
        where = f" (see {self._damage.path})" if self._damage.path else ""
        return (
            f"others stood in for damaged images {replaced} times in training, and {self._not_tested} damaged ones do "
            f"not count in the test{where}"
        )

    def close(self) -> None:
        """As in `Data`."""
        if self._feed is not None:
            self._feed.close()
