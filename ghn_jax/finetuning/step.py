"""One step of supervised training, on all devices: parameters are on each of them, images are shared out.

The compiler sees the whole batch, so that losses, gradients and the statistics of batch norm are those of one device.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from ghn_jax.finetuning.classifier import Classifier
from ghn_jax.finetuning.recipe import Recipe
from ghn_jax.runtime.extras import extra

with extra("train"):
    import optax

Images = Float[Array, "batch height width channel"]
Labels = Int[Array, " batch"]


class State(NamedTuple):
    """What a run needs to go on.

    Attributes:
      params: of the network.
      state: its running statistics and the like.
      opt_state: state of the optimiser.
      step: steps taken.
    """

    params: Any
    state: Any
    opt_state: optax.OptState
    step: Int[Array, ""]


class Measured(NamedTuple):
    """Of one step: loss, top-1 accuracy in percent, and the gradient's norm."""

    loss: Float[Array, ""]
    top1: Float[Array, ""]
    gradient_norm: Float[Array, ""]


Step = Callable[[State, Images, Labels, Array], tuple[State, Measured]]


def make_step(classifier: Classifier, optimizer: optax.GradientTransformation, recipe: Recipe) -> Step:
    """The compiled step (state, images, labels, key) -> (next state, measured); the state is used up."""

    def loss_of(params: Any, state: Any, images: Images, labels: Labels, key: Array) -> Any:
        logits, changed = classifier.apply(
            _lowered(params, recipe.precision), state, _lowered(images, recipe.precision), key
        )
        logits = logits.astype(jnp.float32)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), recipe.label_smoothing)
        changed = jax.tree.map(lambda new, old: new.astype(old.dtype), changed, state)
        return optax.softmax_cross_entropy(logits, targets).mean(), (changed, logits)

    def step(state: State, images: Images, labels: Labels, key: Array) -> tuple[State, Measured]:
        key = jax.random.fold_in(key, state.step)
        differentiate = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (changed, logits)), gradient = differentiate(state.params, state.state, images, labels, key)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        top1 = 100.0 * (logits.argmax(-1) == labels).mean()
        return (
            State(params, changed, opt_state, state.step + 1),
            Measured(loss, top1, optax.tree.norm(gradient)),
        )

    return jax.jit(step, donate_argnums=0)


def _lowered(tree: Any, precision: str) -> Any:
    """Floating-point arrays in the precision that a network computes in."""
    if precision == "float32":
        return tree

    def cast(x: Any) -> Any:
        return x.astype(precision) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(cast, tree)


class Devices:
    """Puts arrays on all devices of this process."""

    def __init__(self) -> None:
        self._mesh = Mesh(np.array(jax.local_devices()), ("image",))

    def replicate(self, tree: Any) -> Any:
        """A copy on each device."""
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))

    def share(self, batch: Any) -> Any:
        """Arrays of a batch, a part of the images on each device.

        Raises ValueError if they do not divide.
        """
        size, devices = len(jax.tree.leaves(batch)[0]), self._mesh.size
        if size % devices:
            raise ValueError(f"`batch_size` (={size}) does not divide over {devices} devices")
        return jax.device_put(batch, NamedSharding(self._mesh, PartitionSpec("image")))
