"""The images of each training step: from a set that stays on the device, or from a stream that is decoded ahead.

Both are functions of the seed and the step alone, so a resumed run sees the images it would have seen.
"""

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Int

from ghn_jax.images import resident
from ghn_jax.images.damage import DamageList
from ghn_jax.images.resident import ImageDataset
from ghn_jax.images.sources import StreamedDataset
from ghn_jax.images.stream import TrainStream

Batch = tuple[Float[Array, "batch height width 3"], Int[Array, " batch"]]


class Feed(Protocol):
    """Gives normalised images and labels, the same ones to every process."""

    @property
    def damaged(self) -> int:
        """Images so far that others had to stand in for."""
        ...

    def __call__(self, step: int) -> Batch:
        """The batch of a step; steps follow each other."""
        ...

    def close(self) -> None:
        """Ends worker processes."""


def open_feed(
    dataset: ImageDataset | StreamedDataset,
    batch_size: int,
    key: Array,
    seed: int,
    first_step: int,
    state: dict[str, Any],
    num_workers: int,
    damaged: DamageList | None = None,
) -> Feed:
    """The feed of a run.

    Args:
      key: draws the batches of a set on the device.
      seed: the same for a stream.
      first_step: the step that is asked for first.
      state: JSON values, kept up to date by a stream; it must go on with the images that saved ones are of, if any.
      num_workers: processes that decode a stream; 0 decodes in threads of this one.
      damaged: takes the names of damaged images.

    Raises ValueError for saved values of other images, and more workers than shared memory has room for.
    """
    if isinstance(dataset, StreamedDataset):
        stream = TrainStream(dataset, batch_size, seed, jax.process_index(), jax.process_count(), num_workers)
        return _Streamed(dataset, stream, first_step, state, damaged or DamageList(None))
    return _Resident(dataset, batch_size, key)


class _Resident:
    damaged = 0

    def __init__(self, dataset: ImageDataset, batch_size: int, key: Array):
        self._key = key
        self._images, self._labels = jnp.asarray(dataset.train.images), jnp.asarray(dataset.train.labels)
        self._batch = jax.jit(
            functools.partial(
                resident.train_batch,
                batch_size=batch_size,
                mean=dataset.mean,
                std=dataset.std,
                pad=dataset.pad,
                flip=dataset.flip,
                image_size=dataset.image_size,
            )
        )

    def __call__(self, step: int) -> Batch:
        return self._batch(self._key, step, self._images, self._labels)

    def close(self) -> None:
        pass


class _Streamed:
    """Each process decodes its share of a batch."""

    def __init__(
        self,
        dataset: StreamedDataset,
        stream: TrainStream,
        first_step: int,
        state: dict[str, Any],
        damaged: DamageList,
    ):
        self._stream = stream
        self._damaged = damaged
        self._stream.restore(self._stream.state() | state | {"next_batch": first_step})
        self._state = state
        self._normalize = jax.jit(functools.partial(resident.normalize, mean=dataset.mean, std=dataset.std))

    @property
    def damaged(self) -> int:
        return self._stream.damaged

    def __call__(self, step: int) -> Batch:
        pixels, labels, _, damaged = next(self._stream)
        self._damaged.add(damaged)
        self._state.update(self._stream.state())
        assert self._state["next_batch"] == step + 1
        if jax.process_count() > 1:
            pixels, labels = (_interleaved(part) for part in (pixels, labels))
        return self._normalize(pixels), jnp.asarray(labels)

    def close(self) -> None:
        self._stream.close()


def _interleaved(own: np.ndarray) -> np.ndarray:
    """The whole batch, of which process p has the images p, p + P, p + 2 P, ..."""
    shares = np.asarray(multihost_utils.process_allgather(own))
    return shares.swapaxes(0, 1).reshape(-1, *own.shape[1:])
