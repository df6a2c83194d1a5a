"""An architecture of DeepNets-1M trained by SGD on the executor, so that nothing is compiled for it alone.

The settings are published ones [1]. Batch norm uses the statistics of each batch, in tests too, as with predicted
parameters; the public code keeps running statistics. The rate falls at every step instead of every epoch.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021, Section 5, and its code.
"""

import statistics
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ghn_jax.evaluation.accuracy import BATCH_SIZE, network_accuracy
from ghn_jax.executor import layouts, run
from ghn_jax.executor.program import Lowered
from ghn_jax.finetuning.recipe import Recipe, make_optimizer
from ghn_jax.images.resident import ImageDataset
from ghn_jax.images.sources import StreamedDataset
from ghn_jax.runtime.extras import extra
from ghn_jax.training.feed import open_feed

with extra("train"):
    import optax

CONVERGED = 0.9
"""A network has converged when its accuracy on training batches first is this part of its highest."""

_SMOOTHING = 10
"""Steps over which that accuracy is averaged."""

Flat = Float[Array, " place"]


class Trained(NamedTuple):
    """What training an architecture gave.

    Attributes:
      top1: accuracy on test images in percent, by epoch.
      noisy_top1: at the end, with noise on the images.
      inference_seconds: of a batch of 64 images, the median of five.
      convergence: part of the steps until the network had converged, from 0 to 1.
      seconds: of all.
    """

    top1: Mapping[int, float]
    noisy_top1: float
    inference_seconds: float
    convergence: float
    seconds: float

    def record(self) -> dict[str, Any]:
        """The same as JSON values."""
        return self._asdict() | {"top1": {str(epoch): value for epoch, value in self.top1.items()}}


def train_network(
    network: Lowered,
    dataset: ImageDataset | StreamedDataset,
    recipe: Recipe,
    epochs: tuple[int, ...] = (1, 5, 50),
    noise: float = 0.08,
    num_workers: int = 0,
) -> Trained:
    """Trains a network from drawn parameters, and tests it.

    Args:
      epochs: after which to test; those within the recipe, whose last one is added.
      noise: standard deviation of the noise of the noisy test, of pixels in 0..1.

    Raises ValueError for a loss that is not finite.
    """
    start = time.monotonic()
    batch_size = recipe.images_per_step(len(dataset.train))
    steps_per_epoch = len(dataset.train) // batch_size
    last_step = recipe.num_steps(len(dataset.train))
    last_epoch = -(-last_step // steps_per_epoch)
    optimizer = make_optimizer(recipe, last_step)

    @jax.jit
    def update(flat: Flat, opt_state: Any, gradient: Flat) -> tuple[Flat, Any]:
        updates, opt_state = optimizer.update(gradient, opt_state, flat)
        return jnp.asarray(optax.apply_updates(flat, updates)), opt_state

    init_key, image_key, dropout_key = jax.random.split(jax.random.key(recipe.seed), 3)
    flat = jnp.asarray(draw_parameters(network, init_key))
    opt_state = jax.jit(optimizer.init)(flat)
    batches = open_feed(dataset, batch_size, image_key, recipe.seed, 0, {}, num_workers)
    top1: dict[int, float] = {}
    hits = []
    try:
        for step in range(last_step):
            images, labels = batches(step)
            key = jax.random.fold_in(dropout_key, step)
            outcome = run.loss_and_gradient(
                network.program, flat, images, labels, key, recipe.label_smoothing
            )
            if not np.isfinite(float(outcome.loss)):
                raise ValueError(
                    f"`loss` (={float(outcome.loss)}) is not finite at step {step + 1}: lower `learning_rate` "
                    f"(={recipe.learning_rate})"
                )
            flat, opt_state = update(flat, opt_state, outcome.gradient)
            hits.append(float((outcome.logits.argmax(-1) == labels).mean()))
            epoch, rest = divmod(step + 1, steps_per_epoch)
            done = step + 1 == last_step
            if done or (rest == 0 and epoch in epochs):
                tested = network_accuracy(network, flat, dataset, "test", num_workers=num_workers)
                top1[last_epoch if done else epoch] = tested.top1
    finally:
        batches.close()
    noisy = network_accuracy(network, flat, dataset, "test", num_workers=num_workers, noise=noise)
    return Trained(
        top1,
        noisy.top1,
        inference_seconds(network, flat, dataset.image_size),
        convergence(hits),
        time.monotonic() - start,
    )


def draw_parameters(network: Lowered, key: Array) -> Float[np.ndarray, " place"]:
    """The flat vector of a fresh network, initialised as PyTorch does by default; its length is a power of two."""
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    shapes = {parameter.name: parameter.shape for parameter in network.parameters}
    tensors = {name: _drawn(name, shapes, generator) for name in shapes}
    size = 1 << (network.flat_size - 1).bit_length()  # few lengths, hence few compilations
    return layouts.flatten(network.parameters, tensors, size)


def _drawn(
    name: str, shapes: Mapping[str, tuple[int, ...]], generator: np.random.Generator
) -> Float[np.ndarray, "..."]:
    shape = shapes[name]
    if len(shape) == 4 and shape[0] == 1 and name.startswith("pos_enc"):
        return generator.standard_normal(shape)
    weight = shapes.get(f"{name.rpartition('.')[0]}.weight", shape)
    if len(weight) == 1:  # a norm
        return np.ones(shape) if name.endswith("weight") else np.zeros(shape)
    bound = 1 / np.sqrt(np.prod(weight[1:]))
    return generator.uniform(-bound, bound, shape)


def inference_seconds(network: Lowered, flat: Flat, image_size: int) -> float:
    """Of a forward pass on 64 images, once compiled: the median of five."""
    program = run.without_dropout(network.program)
    weights = run.load_weights(program, flat)
    images = jnp.zeros((BATCH_SIZE, image_size, image_size, 3))
    jax.block_until_ready(run.forward(program, weights, images))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(run.forward(program, weights, images))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def convergence(hits: list[float]) -> float:
    """The part of the steps until the running mean of training accuracies first is `CONVERGED` of its highest."""
    window = min(_SMOOTHING, len(hits))
    means = np.convolve(hits, np.full(window, 1 / window), mode="valid")
    return float((int(np.argmax(means >= CONVERGED * means.max())) + window) / len(hits))
