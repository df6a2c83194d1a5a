"""Batches of images decoded ahead of the device, by grain, in worker processes.

Training batch k is a pure function of the seed and k: each epoch is a new permutation of the images, and the place in
this endless sequence seeds an image's augmentation. So neither the number of workers nor that of processes nor a
restart changes which images follow.
"""

import functools
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from ghn_jax.images.examples import DamagedImage, Source
from ghn_jax.images.sources import StreamedDataset
from ghn_jax.runtime import signals
from ghn_jax.runtime.extras import extra

with extra("train"):
    import grain
    from absl import flags

MAX_DAMAGED_IN_A_ROW = 64
"""With as many neighbours unreadable, a file or disk is at fault, not an image."""

_SHARED_BATCHES = 4
"""Batches of a worker that may be in shared memory at a time: being written, sent, received, and waiting to be used."""

_SHARED_MEMORY = Path("/dev/shm")

Pixels = UInt8[np.ndarray, "size size 3"]


class Batch(NamedTuple):
    """Images in 0..255 and their classes.

    Attributes:
      new: whether an image counts in an accuracy: not if it stands in for a damaged one, or repeats one of the batch
        before.
      damaged: what was wrong with each damaged image that another one stands in for.
    """

    images: UInt8[np.ndarray, "batch size size 3"]
    labels: Int32[np.ndarray, " batch"]
    new: Bool[np.ndarray, " batch"]
    damaged: tuple[str, ...]


def training_batches(
    dataset: StreamedDataset, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
) -> grain.MapDataset[Batch]:
    """The endless sequence of a process's batches; see `TrainStream`.

    Raises:
      ValueError: a number is out of range.
    """
    from ghn_jax.images import decode  # needs decoders, whose absence `open_dataset` has reported

    if not 1 <= batch_size <= len(dataset.train):
        raise ValueError(
            f"`batch_size` (={batch_size}) must be in 1..{len(dataset.train)}, the number of training images"
        )
    if batch_size % process_count:
        raise ValueError(f"`batch_size` (={batch_size}) does not divide over {process_count} processes")
    if seed < 0:
        raise ValueError(f"`seed` (={seed}) must not be negative")
    order_seed, augmentation_seed = map(int, np.random.SeedSequence(seed).generate_state(2))
    transform = functools.partial(decode.training_crop, flip=dataset.flip)
    if dataset.crops == "shifted":
        transform = functools.partial(decode.shifted_crop, flip=dataset.flip, pad=dataset.image_size // 8)
    return (
        grain.MapDataset.range(len(dataset.train))
        .shuffle(order_seed)
        .repeat()
        .random_map(_Training(dataset.train, transform, dataset.image_size), seed=augmentation_seed)
        .slice(slice(process_index, None, process_count))
        .batch(batch_size // process_count, drop_remainder=True, batch_fn=_stack)
    )


class TrainStream(Iterator[Batch]):
    """The training batches of a process, made ahead, from any of them on.

    Of a step's batch a process takes the images p, p + P, p + 2 P, ..., where p is its index and P their number.

    Attributes:
      damaged: images so far that others had to stand in for, in this process and all that it goes on from.
    """

    def __init__(
        self,
        dataset: StreamedDataset,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        num_workers: int = 0,
    ):
        """Starts no worker yet.

        Args:
          batch_size: images per step, of all processes together.
          num_workers: processes that decode for this one; 0 decodes in threads of this one.

        Raises:
          ValueError: a number is out of range, or shared memory is too small for the workers.
        """
        self._batches = training_batches(dataset, batch_size, seed, process_index, process_count)
        self._identity = {
            "dataset": dataset.name,
            "images": len(dataset.train),
            "image_size": dataset.image_size,
            "batch_size": batch_size,
            "seed": seed,
        }
        _check_workers(num_workers, batch_size // process_count * dataset.image_size**2 * 3)
        self._num_workers = num_workers
        self._iterator: grain.DatasetIterator[Batch] | None = None
        self._next_batch = 0
        self.damaged = 0

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
          ValueError: 64 images in a row cannot be read, or a worker died.
        """
        if self._iterator is None:
            rest = self._batches.slice(slice(self._next_batch, None))
            self._iterator = _start(rest, self._num_workers)
        batch = _take(self._iterator, self._num_workers)
        self._next_batch += 1
        self.damaged += len(batch.damaged)
        return batch

    def state(self) -> dict[str, Any]:
        """Where the stream is after the latest batch taken, for `restore`; plain values to be written as JSON."""
        return self._identity | {"next_batch": self._next_batch, "damaged": self.damaged}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on with the very next image after those of `state`, also with other workers or processes.

        Raises:
          ValueError: `state` is of a stream of other images or another order.
        """
        differences = [
            f"{k} was {state.get(k)}, is {v}" for k, v in self._identity.items() if state.get(k) != v
        ]
        if differences:
            raise ValueError(f"`state` is of another stream of images: {'; '.join(differences)}")
        self.close()
        self._next_batch, self.damaged = int(state["next_batch"]), int(state["damaged"])

    def close(self) -> None:
        """Ends the workers; the next batch would start them again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def evaluation_batches(
    dataset: StreamedDataset,
    source: Source,
    batch_size: int = 64,
    num_images: int | None = None,
    seed: int = 0,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """All images of a split, or so many, once, in an order fixed by the seed.

    Where their number is no multiple of `batch_size`, the last batch takes in images of the one before, which are not
    `new`.

    Args:
      source: `dataset.val` or `dataset.test`.

    Raises:
      ValueError: there are fewer than `batch_size` images, 64 in a row cannot be read, or a worker died.
    """
    from ghn_jax.images import decode  # as in `training_batches`

    count = min(len(source), num_images or len(source))
    if not 1 <= batch_size <= count:
        raise ValueError(
            f"`batch_size` (={batch_size}) must be in 1..{count}, the number of images to evaluate on"
        )
    starts = np.arange(0, count, batch_size)
    positions = np.minimum(starts, count - batch_size)[:, None] + np.arange(batch_size)
    new = positions >= starts[:, None]
    order = np.random.default_rng(seed).permutation(len(source))[positions]
    resized = dataset.image_size if dataset.crops == "shifted" else round(dataset.image_size * decode.RESIZED)
    transform = functools.partial(decode.central_crop, size=dataset.image_size, resized=resized)
    batches = (
        grain.MapDataset.source(list(zip(order.ravel().tolist(), new.ravel().tolist(), strict=True)))
        .map(_Evaluation(source, transform))
        .batch(batch_size, batch_fn=_stack)
    )
    _check_workers(num_workers, batch_size * dataset.image_size**2 * 3)
    iterator = _start(batches, num_workers)
    try:
        for _ in starts:
            yield _take(iterator, num_workers)
    finally:
        iterator.close()


# -- one image -----------------------------------------------------------------------------------------------


class _Example(NamedTuple):
    """One entry of a `Batch`; `damaged` is None where nothing was."""

    image: Pixels
    label: int
    new: bool
    damaged: str | None


@dataclass(frozen=True)
class _Training:
    """Reads, decodes and augments the image of an index."""

    source: Source
    transform: Callable[..., Pixels]
    size: int

    def __call__(self, index: int, rng: np.random.Generator) -> _Example:
        image, label, damaged = _load(self.source, lambda data: self.transform(data, self.size, rng), index)
        return _Example(image, label, damaged is None, damaged)


@dataclass(frozen=True)
class _Evaluation:
    """Reads, decodes and crops the image of an index, which is new or not."""

    source: Source
    transform: Callable[[bytes], Pixels]

    def __call__(self, entry: tuple[int, bool]) -> _Example:
        index, new = entry
        image, label, damaged = _load(self.source, self.transform, index)
        return _Example(image, label, new and damaged is None, damaged if new else None)


def _load(source: Source, transform: Callable[[bytes], Pixels], index: int) -> tuple[Pixels, int, str | None]:
    """An image or, if it is damaged, the next one that is not; its label; and what was wrong with the first."""
    damaged = None
    for step in range(MAX_DAMAGED_IN_A_ROW):
        place = (index + step) % len(source)
        where = ""
        try:
            data, label, where = source[place]
            return transform(data), label, damaged
        except DamagedImage as error:
            damaged = damaged or f"image {place}: {where and where + ': '}{error}"
    raise ValueError(
        f"{MAX_DAMAGED_IN_A_ROW} images in a row cannot be read ({damaged}): is the disk there, the data set whole?"
    )


def _stack(examples: Sequence[_Example]) -> Batch:
    images, labels, new, damaged = zip(*examples, strict=True)
    return Batch(
        np.ascontiguousarray(np.stack(images)),  # or else it would not pass through shared memory
        np.array(labels, np.int32),
        np.array(new),
        tuple(message for message in damaged if message is not None),
    )


# -- workers -------------------------------------------------------------------------------------------------


def _start(batches: grain.MapDataset[Batch], num_workers: int) -> grain.DatasetIterator[Batch]:
    """Iterates over batches that are made ahead, by worker processes or by threads of this one."""
    threads = 1 if num_workers else min(4, os.cpu_count() or 1)
    ahead = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    if num_workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain asks absl, which our commands do without
        workers = min(num_workers, len(batches))
        _start_tracker()
        one_ahead = grain.MultiprocessingOptions(workers, per_worker_buffer_size=1)
        ahead = ahead.mp_prefetch(one_ahead, worker_init_fn=_follow_parent)
    return iter(ahead)


def _start_tracker() -> None:
    """Starts the resource tracker, which frees the batches on their way when workers end, and is not to warn of it."""
    name = "PYTHONWARNINGS"
    before = os.environ.get(name)
    os.environ[name] = ",".join([*filter(None, [before]), "ignore:resource_tracker:UserWarning"])
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _follow_parent(*_: int) -> None:
    """In a worker: leaves signals to the process that started it, and ends when that one has, however it died."""
    for number in signals.ASKING:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)  # its shared memory is then freed by Python's resource tracker

    threading.Thread(target=follow, daemon=True).start()


def _take(iterator: grain.DatasetIterator[Batch], num_workers: int) -> Batch:
    try:
        batch = next(iterator)
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):
            raise
        raise ValueError(
            f"a worker process died ({error}): lower `num_workers` (={num_workers}), if memory ran out"
        ) from error
    if num_workers:  # gives shared memory back at once, whatever the caller keeps
        batch = Batch(np.array(batch.images), np.array(batch.labels), np.array(batch.new), batch.damaged)
    return batch


def _check_workers(num_workers: int, batch_bytes: int) -> None:
    """Refuses more workers than shared memory holds batches of: writing beyond it would kill them."""
    if num_workers < 0:
        raise ValueError(f"`num_workers` (={num_workers}) must not be negative")
    if num_workers == 0 or not _SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(_SHARED_MEMORY).free
    needed = _SHARED_BATCHES * batch_bytes
    if num_workers * needed > free:
        raise ValueError(
            f"`num_workers` (={num_workers}) needs {num_workers * needed / 2**20:.0f} MiB of shared memory, "
            f"{_SHARED_MEMORY} has {free / 2**20:.0f}: lower it to {free // needed}, or give more "
            "(docker run --shm-size)"
        )
