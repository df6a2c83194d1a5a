"""Images to train on, and to test on: an image set, arrays, or the batches of an iterator."""

import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ghn_jax.evaluation.accuracy import NotFinite
from ghn_jax.evaluation.results import checksum
from ghn_jax.images.resident import ImageDataset, batch_indices
from ghn_jax.images.sources import StreamedDataset

Arrays = tuple[Float[Any, "image height width channel"], Int[Any, " image"]]
"""Images as the model takes them, normalised, and their labels."""

Batch = tuple[Float[Array, "batch height width channel"], Int[Array, " batch"]]
Logits = Callable[[Float[Array, "batch height width channel"]], Float[Array, "batch label"]]

_TEST_BATCH = 64


class Accuracy(NamedTuple):
    """Percentages of the test images whose class is the first, or among the first five, that a network names."""

    top1: float
    top5: float


class Data(Protocol):
    """What a network is trained and tested on.

    Attributes:
      image_shape: (height, width, channel) of the images that the network sees.
      num_images: images to train on; None if only the iterator knows.
      num_classes: None if nobody knows.
      identity: what tells the images from others, in JSON values.
    """

    image_shape: tuple[int, ...]
    num_images: int | None
    num_classes: int | None
    identity: dict[str, Any]

    def batches(
        self, batch_size: int, seed: int, first: int, state: dict[str, Any]
    ) -> Callable[[int], Batch]:
        """The batch of each step, asked for one after the other from `first` on.

        Args:
          state: JSON values to go on from; kept up to date.
        """
        ...

    def test(self, logits: Logits) -> Accuracy | None:
        """The accuracy on images never trained on, None if there are none."""
        ...

    @property
    def damage(self) -> str | None:
        """What there is to say of damaged images, None if all were whole."""
        ...

    def close(self) -> None:
        """Ends worker processes."""
        ...


def make_data(data: Any, test: Arrays | None = None, workdir: pathlib.Path | None = None) -> Data:
    """Images from what a user has.

    Args:
      data: an image set of `ghn_jax.images`; a pair of arrays (images, labels); or an iterable of such pairs, one for
        each step.
      test: images and labels to test on, for what is no image set, whose test images are used.
      workdir: keeps the names of damaged images.

    Raises ValueError if shapes do not fit.
    """
    if isinstance(data, ImageDataset | StreamedDataset):
        from ghn_jax.finetuning.image_sets import FromDataset  # needs decoders, which arrays do without

        return FromDataset(data, workdir=workdir)
    tested = None if test is None else _checked(test, "test")
    found: FromArrays | FromIterator | None = None
    if _is_pair(data):
        found = FromArrays(*_checked(data, "data"), tested)
    elif isinstance(data, Iterable):
        found = FromIterator(iter(data), tested)
    if found is not None:
        if tested is not None and tested[0].shape[1:] != found.image_shape:
            raise ValueError(
                f"`test` has images of shape {tested[0].shape[1:]}, and `data` of {found.image_shape}: give the same"
            )
        return found
    raise ValueError(
        f"`data` (a {type(data).__name__}) is no image set, no pair of arrays (images, labels) and no iterable of them"
    )


class FromArrays:
    """Arrays, in a new order in each epoch, not augmented."""

    damage = None

    def __init__(self, images: np.ndarray, labels: np.ndarray, test: tuple[np.ndarray, np.ndarray] | None):
        self.image_shape = images.shape[1:]
        self.num_images: int | None = len(images)
        self.num_classes: int | None = 1 + max(
            int(part[1].max()) for part in ((images, labels), test) if part
        )
        self.identity = {"fingerprint": checksum([images, labels, test])}
        self._images, self._labels, self._test = images, labels, test

    def batches(
        self, batch_size: int, seed: int, first: int, state: dict[str, Any]
    ) -> Callable[[int], Batch]:
        """As in `Data`."""
        key, images, labels = jax.random.key(seed), jnp.asarray(self._images), jnp.asarray(self._labels)

        @jax.jit
        def batch(step: Any) -> Batch:
            indices = batch_indices(key, step, len(images), batch_size)
            return images[indices], labels[indices]

        return batch

    def test(self, logits: Logits) -> Accuracy | None:
        """As in `Data`."""
        return _test(logits, self._test)

    def close(self) -> None:
        """As in `Data`."""


class FromIterator:
    """Batches as they come. A resumed run passes over those it has seen, and knows the first of them again."""

    damage = None

    def __init__(self, batches: Iterator[Any], test: tuple[np.ndarray, np.ndarray] | None):
        first = next(batches, None)
        if first is None:
            raise ValueError("`data` has no batch: give an iterable of (images, labels)")
        images, labels = _checked(first, "data")
        self.image_shape = images.shape[1:]
        self.num_images: int | None = None
        self.num_classes: int | None = None if test is None else int(test[1].max()) + 1
        self.identity = {"fingerprint": checksum([images, labels, test])}
        self._batches, self._test = itertools.chain([first], batches), test

    def batches(
        self, batch_size: int, seed: int, first: int, state: dict[str, Any]
    ) -> Callable[[int], Batch]:
        """As in `Data`; the batch size is that of the iterator."""
        for step in range(first):
            self._next(step)
        return self._next

    def _next(self, step: int) -> Batch:
        batch = next(self._batches, None)
        if batch is None:
            raise ValueError(
                f"`data` ended after {step} batches, one a step, and more steps are wanted: give a longer iterator, or "
                f"steps={step}; checkpoints are as before"
            )
        images, labels = _checked(batch, "data")
        return jnp.asarray(images), jnp.asarray(labels)

    def test(self, logits: Logits) -> Accuracy | None:
        """As in `Data`."""
        return _test(logits, self._test)

    def close(self) -> None:
        """As in `Data`."""


def _is_pair(data: Any) -> bool:
    """Whether these are images and labels, rather than two batches; either may be a list."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        return False
    return any(hasattr(part, "shape") for part in data) or isinstance(data[1][0], int)


def _checked(pair: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images in float32 and labels in int32; ValueError unless they belong together, and all numbers are finite."""
    try:
        images, labels = pair
    except (TypeError, ValueError):
        raise ValueError(
            f"`{name}` holds a {type(pair).__name__}, no pair (images, labels): give one"
        ) from None
    images, labels = np.asarray(images, np.float32), np.asarray(labels)
    if images.ndim < 2 or labels.ndim != 1 or len(images) != len(labels) or len(labels) == 0:
        raise ValueError(
            f"`{name}` has images of shape {images.shape} and labels of shape {labels.shape}: give (image, height, "
            "width, channel) and (image,)"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ValueError(
            f"`{name}` has labels of type {labels.dtype}, from {labels.min()}: give integers from 0 on"
        )
    if not np.isfinite(images).all():
        raise ValueError(f"`{name}` has images with numbers that are not finite: replace them")
    return images, labels.astype(np.int32)


def _test(logits: Logits, test: tuple[np.ndarray, np.ndarray] | None) -> Accuracy | None:
    if test is None:
        return None
    images, labels = test
    hits = np.zeros(2)
    for start in range(0, len(labels), _TEST_BATCH):
        part, wanted = images[start : start + _TEST_BATCH], labels[start : start + _TEST_BATCH]
        rows: Array = logits(jnp.asarray(np.resize(part, (_TEST_BATCH, *part.shape[1:]))))[: len(wanted)]
        numbers = np.asarray(rows, np.float32)
        if not np.isfinite(numbers).all():
            raise NotFinite(f"the logits of test images {start} to {start + len(wanted) - 1} are not finite")
        order = np.argsort(-numbers, axis=-1, kind="stable")
        hits += [(order[:, :k] == wanted[:, None]).any(-1).sum() for k in (1, 5)]
    top1, top5 = 100.0 * hits / len(labels)
    return Accuracy(float(top1), float(top5))
