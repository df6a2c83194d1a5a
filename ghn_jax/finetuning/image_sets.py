"""Image sets of `ghn_jax.images` as data to train a network on."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from ghn_jax.evaluation.accuracy import accuracy
from ghn_jax.finetuning.data import Accuracy, Batch, Logits
from ghn_jax.images.resident import ImageDataset
from ghn_jax.images.sources import StreamedDataset
from ghn_jax.training.feed import Feed, open_feed


@dataclasses.dataclass
class FromDataset:
    """A named set, augmented and normalised as it is in meta-training."""

    dataset: ImageDataset | StreamedDataset
    split: str = "test"
    num_workers: int = 0

    def __post_init__(self) -> None:
        size = self.dataset.image_size
        self.image_shape = (size, size, 3)
        self.num_images: int | None = len(self.dataset.train)
        self.num_classes: int | None = self.dataset.num_classes
        self._feed: Feed | None = None

    def batches(
        self, batch_size: int, seed: int, first: int, state: dict[str, Any]
    ) -> Callable[[int], Batch]:
        """As in `Data`."""
        key = jax.random.key(seed)
        self._feed = open_feed(self.dataset, batch_size, key, seed, first, state, self.num_workers)
        return self._feed

    def test(self, logits: Logits) -> Accuracy | None:
        """As in `Data`."""
        result = accuracy(logits, self.dataset, self.split, num_workers=self.num_workers)
        return Accuracy(result.top1, result.top5)

    def close(self) -> None:
        """As in `Data`."""
        if self._feed is not None:
            self._feed.close()
