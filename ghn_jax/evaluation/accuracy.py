"""Accuracy of networks with predicted parameters, without a gradient step.

Running statistics of batch norm are not predicted, so networks are run with the statistics of each batch of 64 images.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021, Section 5.
"""

import functools
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from datasets.images import ImageDataset, ImageSplit, normalize
from ghn_jax.config import GHNConfig
from ghn_jax.executor import run
from ghn_jax.executor.program import Lowered
from ghn_jax.graphs import batch
from ghn_jax.models.ghn import GHN, encode
from ghn_jax.templates import Template, make_plan

BATCH_SIZE = 64
"""Images per batch, hence of the batch-norm statistics, in the published evaluation."""


def predict_flat(
    config: GHNConfig, params: dict[str, Any], network: Lowered, templates: tuple[Template, ...]
) -> Float[Array, "row 8"]:
    """The flat parameter vector that a GHN predicts for a network."""
    graphs = batch([encode(network.graph, config)])
    plan = make_plan(network, config, templates)
    return _predict(config, templates, graphs.max_nodes, params, graphs.graphs, plan)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _predict(config, templates, max_nodes, params, graphs, plan):
    return GHN(config).apply({"params": params}, graphs, max_nodes, plan, templates)


def top1(network: Lowered, flat: Float[Array, "..."], dataset: ImageDataset, split: ImageSplit) -> float:
    """Top-1 accuracy, in percent, on the images of a split."""
    program = run.without_dropout(network.program)
    weights = run.load_weights(program, flat)
    hits = jnp.zeros((), jnp.int32)
    for images, labels, new in batches(dataset, split):
        hits += _hits(run.forward(program, weights, images), labels, new)
    return 100.0 * int(hits) / len(split.images)


def batches(dataset: ImageDataset, split: ImageSplit) -> Iterator[tuple[Array, np.ndarray, np.ndarray]]:
    """Batches of 64 normalised images, their labels, and which of them count.

    Where the number of images is no multiple of 64, the last batch takes in images of the one before, which are
    not to be counted twice (the published code makes it smaller, and its statistics poorer).

    Raises ValueError for less than 64 images.
    """
    count = len(split.images)
    if count < BATCH_SIZE:
        raise ValueError(f"`split` has {count} images: evaluation needs at least {BATCH_SIZE}")
    for start in range(0, count, BATCH_SIZE):
        first = min(start, count - BATCH_SIZE)
        part = slice(first, first + BATCH_SIZE)
        images = _normalized(split.images[part], dataset.mean, dataset.std)
        yield images, split.labels[part], np.arange(first, first + BATCH_SIZE) >= start


@functools.partial(jax.jit, static_argnums=(1, 2))
def _normalized(images, mean, std):
    return normalize(images, mean, std)


@jax.jit
def _hits(logits, labels, new):
    return ((logits.argmax(-1) == labels) & new).sum()


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
