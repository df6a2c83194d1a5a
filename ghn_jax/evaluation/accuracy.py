"""Accuracy of networks with predicted parameters, without a gradient step.

Running statistics of batch norm are not predicted, so networks are run with the statistics of each batch of 64 images.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021, Section 5.
"""

import functools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ghn_jax.executor import run
from ghn_jax.executor.compiler_options import options_for
from ghn_jax.executor.program import Lowered
from ghn_jax.graphs import batch
from ghn_jax.images.resident import ImageDataset, normalize
from ghn_jax.images.sources import StreamedDataset
from ghn_jax.images.stream import Batch, evaluation_batches
from ghn_jax.models.config import GHNConfig
from ghn_jax.models.ghn import GHN, encode
from ghn_jax.models.templates import Template, make_plan

BATCH_SIZE = 64
"""Images per batch, hence of the batch-norm statistics, in the published evaluation."""

Logits = Callable[[Float[Array, "batch height width 3"]], Float[Array, "batch label"]]


class Accuracy(NamedTuple):
    """Percentages of the images whose class is the first, or among the first five, that a network names.

    Attributes:
      num_images: how many images count: all but damaged ones.
      damaged: what is wrong with each of the others.
    """

    top1: float
    top5: float
    num_images: int
    damaged: tuple[str, ...] = ()


class NotFinite(ValueError):
    """Parameters or logits of a network that are infinite or not a number."""


def predict_flat(
    config: GHNConfig, params: dict[str, Any], network: Lowered, templates: tuple[Template, ...]
) -> Float[Array, "row 8"]:
    """The flat parameter vector that a GHN predicts for a network."""
    graphs = batch([encode(network.graph, config)])
    plan = make_plan(network, config, templates)
    return _predictor()(config, templates, graphs.max_nodes, params, graphs.graphs, plan)


@functools.cache
def _predictor() -> Callable[..., Float[Array, "row 8"]]:
    """Compiled as what runs once: a network is predicted once, and tested for far longer."""

    def predict(config, templates, max_nodes, params, graphs, plan):
        return GHN(config).apply({"params": params}, graphs, max_nodes, plan, templates)

    return jax.jit(predict, static_argnums=(0, 1, 2), compiler_options=options_for("once"))


def network_accuracy(
    network: Lowered,
    flat: Float[Array, "..."],
    dataset: ImageDataset | StreamedDataset,
    split: str,
    num_images: int | None = None,
    num_workers: int = 0,
    noise: float = 0.0,
    name: str = "the network",
) -> Accuracy:
    """Accuracy of a lowered network with these parameters; other arguments as for `accuracy`."""
    program = run.without_dropout(network.program)
    weights = run.load_weights(program, flat)
    logits = functools.partial(run.forward, program, weights)
    return accuracy(logits, dataset, split, num_images, num_workers, noise, name)


def accuracy(
    logits: Logits,
    dataset: ImageDataset | StreamedDataset,
    split: str,
    num_images: int | None = None,
    num_workers: int = 0,
    noise: float = 0.0,
    name: str = "the network",
    done: Callable[[int], None] = lambda batches: None,
    batch_size: int = BATCH_SIZE,
) -> Accuracy:
    """Accuracy of a function from images to logits.

    Args:
      split: "val", images held out from the training set, or "test".
      num_images: only so many of the images, at least 64; the same ones in every call.
      num_workers: processes that decode a streamed set.
      noise: standard deviation of Gaussian noise on the pixels, in 0..1, which stay in that range; the same noise in
        every call.
      name: of the network, for messages.
      done: is told how many batches were started, after each.
      batch_size: images of a batch, on whose statistics the norms of `logits` may depend.

    Raises ValueError for a split of less images than a batch, and for negative noise; NotFinite for logits that are not
    finite.
    """
    if noise < 0:
        raise ValueError(f"`noise` (={noise}) must not be negative")
    counts, damaged = [], []
    for number, part in enumerate(_batches(dataset, split, num_images, num_workers, batch_size)):
        images = _noisy(part.images, noise, number) if noise else part.images
        predicted = logits(_normalized(images, dataset.mean, dataset.std, dataset.image_size))
        counts.append(_count(predicted, part.labels, part.new))
        damaged += part.damaged
        done(number + 1)
    top1, top5, total, finite = np.sum(np.asarray(counts), axis=0)
    if finite < len(counts):
        raise NotFinite(
            f"the logits of {name} are not finite on {len(counts) - finite} of {len(counts)} batches: it has no "
            "accuracy"
        )
    return Accuracy(100.0 * float(top1) / total, 100.0 * float(top5) / total, int(total), tuple(damaged))


def _batches(
    dataset: ImageDataset | StreamedDataset,
    split: str,
    num_images: int | None,
    num_workers: int,
    batch_size: int,
) -> Iterator[Batch]:
    """Batches of images.

    Where the number of images is no multiple of their size, the last batch takes in images of the one before, which are
    not to be counted twice (the published code makes it smaller, and its statistics poorer).
    """
    if isinstance(dataset, StreamedDataset):
        source = dataset.val if split == "val" else dataset.test
        yield from evaluation_batches(dataset, source, batch_size, num_images, num_workers=num_workers)
        return
    held_out = dataset.val if split == "val" else dataset.test
    count = min(len(held_out.images), num_images or len(held_out.images))
    if count < batch_size:
        raise ValueError(f"`split` (={split!r}) has {count} images: evaluation needs at least {batch_size}")
    for start in range(0, count, batch_size):
        first = min(start, count - batch_size)
        part = slice(first, first + batch_size)
        new = np.arange(first, first + batch_size) >= start
        yield Batch(held_out.images[part], held_out.labels[part], new, ())


@jax.jit
def _noisy(images, noise, number):
    """Pixels in 0..255, no longer whole, with the noise of a batch."""
    key = jax.random.fold_in(jax.random.key(0), number)
    return 255 * jnp.clip(images / 255 + noise * jax.random.normal(key, images.shape), 0, 1)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _normalized(images, mean, std, image_size):
    return normalize(images, mean, std, image_size)


@jax.jit
def _count(logits, labels, new):
    """How many labels come first, and among the first five; how many there are; 1 if all logits are finite."""
    own, place = logits[jnp.arange(len(labels)), labels, None], jnp.arange(logits.shape[-1])
    behind = (logits < own) | (logits == own) & (place >= labels[:, None])  # nothing is behind NaN
    before = (~behind).sum(-1)
    finite = jnp.isfinite(logits).all().astype(jnp.int32)
    return jnp.stack([((before < 1) & new).sum(), ((before < 5) & new).sum(), new.sum(), finite])


class Summary(NamedTuple):
    """Accuracies over the architectures of a split: mean, standard error of the mean, maximum and where it is."""

    mean: float
    standard_error: float
    best: float
    best_index: int | str


def summarize(accuracies: Sequence[float], indices: Sequence[int | str]) -> Summary:
    """Summarises accuracies as published: mean ± standard error, maximum, and the index of the best architecture."""
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    place = int(np.argmax(accuracies))
    return Summary(
        statistics.fmean(accuracies), spread / math.sqrt(len(accuracies)), accuracies[place], indices[place]
    )
