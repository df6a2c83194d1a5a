"""A few training images of each class."""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from jaxtyping import Int

from ghn_jax.images.examples import DamagedImage, Source, Subset
from ghn_jax.images.resident import ImageDataset, ImageSplit
from ghn_jax.images.sources import StreamedDataset

AnyDataset = TypeVar("AnyDataset", bound=ImageDataset | StreamedDataset)


def few_shots(dataset: AnyDataset, shots: int, seed: int = 0) -> AnyDataset:
    """The set with `shots` training images of each class, chosen by the seed; other splits stay whole.

    Of a streamed set labels are read in random order until all classes are complete; damaged images are passed over.

    Raises ValueError if a class has fewer.
    """
    if shots < 1:
        raise ValueError(f"`shots` (={shots}) must be at least 1")
    if isinstance(dataset, StreamedDataset):
        labels = _Labels(dataset.train)
        chosen = _choose(labels, dataset.num_classes, shots, seed, labels.is_whole)
        return dataclasses.replace(dataset, train=Subset(dataset.train, chosen))
    train = dataset.train
    chosen = _choose(train.labels, dataset.num_classes, shots, seed)
    return dataclasses.replace(dataset, train=ImageSplit(train.images[chosen], train.labels[chosen]))


class _Labels:
    """Labels of a source, read when asked for; -1 for a damaged image."""

    def __init__(self, source: Source):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int, /) -> int:
        try:
            return self._source[index].label
        except DamagedImage:
            return -1

    def is_whole(self, index: int) -> bool:
        """Whether an image that was read can be decoded."""
        from ghn_jax.images import decode  # needs decoders, whose absence `open_dataset` has reported

        try:
            decode.central_crop(self._source[index].data, 32, 32)
        except DamagedImage:
            return False
        return True


def _choose(
    labels, num_classes: int, shots: int, seed: int, is_whole: Callable[[int], bool] = lambda index: True
) -> Int[np.ndarray, " image"]:
    chosen: list[int] = []
    counts = np.zeros(num_classes, int)
    for index in np.random.default_rng(seed).permutation(len(labels)):
        label = labels[int(index)]
        if label >= 0 and counts[label] < shots and is_whole(int(index)):
            counts[label] += 1
            chosen.append(int(index))
            if len(chosen) == shots * num_classes:
                return np.sort(np.array(chosen))
    poorest = int(counts.argmin())
    raise ValueError(
        f"`shots` (={shots}) exceeds the {counts[poorest]} training images of class {poorest}: lower it to "
        f"{counts[poorest]}"
    )
