"""One step of meta-training.

  min_theta  mean over networks a of  loss(a with parameters H(a; theta), images)    [1, Eq. 1]

The GHN's part runs under pmap, each device with its share of the meta-batch. Between decoding a network and
pulling its gradient back, the executor runs it forward and backward, so that the activations of a few networks
exist at a time.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ghn_jax.executor import run
from ghn_jax.executor.compiler_options import options_for
from ghn_jax.executor.lanes import run_in_lanes
from ghn_jax.executor.program import Lowered
from ghn_jax.models.config import GHNConfig
from ghn_jax.models.ghn import GHN, init_params
from ghn_jax.models.near_identity import near_identity
from ghn_jax.models.templates import Template
from ghn_jax.runtime import origin
from ghn_jax.runtime.extras import extra
from ghn_jax.training.penalty import norms_gradient
from ghn_jax.training.pmapped import AXIS, Pmapped, Program
from ghn_jax.training.prepare import PreparedBatch
from ghn_jax.training.recipes import PUBLISHED, Recipe

with extra("train"):
    import optax

Params = dict[str, Any]

_MIN_NODES = 1024
"""Nodes to which embeddings are padded: more than almost all training architectures have."""


class TrainState(NamedTuple):
    """What a run needs to go on.

    Attributes:
      params: weights of the GHN.
      opt_state: state of the optimiser.
      step: steps taken, skipped ones included.
      skipped: steps skipped in a row because the loss, the gradient or the new weights were not finite.
      average: exponential average of the weights, if the recipe keeps one.
    """

    params: Params
    opt_state: optax.OptState
    step: Int[Array, ""]
    skipped: Int[Array, ""]
    average: Params | None = None

    @property
    def best_params(self) -> Params:
        """The weights to predict with."""
        return self.params if self.average is None else self.average


class Metrics(NamedTuple):
    """Of one step: mean loss and top-1 accuracy (in percent) of the networks, and the gradient's norm."""

    loss: Float[Array, ""]
    top1: Float[Array, ""]
    gradient_norm: Float[Array, ""]


class Gradients(NamedTuple):
    """Gradients of the decoder's weights and of node embeddings.

    Of one network, or summed over the networks of a device: the embeddings have another axis then.
    """

    decoder: Params
    nodes: Float[Array, "*network node c"]


class OutOfMemory(ValueError):
    """A network does not fit the memory of its device; `place` says which one of the meta-batch."""

    def __init__(self, message: str, place: int):
        super().__init__(message)
        self.place = place


class GHNStep(NamedTuple):
    """The GHN's part of a step; every function is pmapped, arrays have a leading device axis.

    Attributes:
      embed: (params, graphs, max_nodes=...) -> node embeddings, padded to a size that most meta-batches share, so that
        the functions after it are compiled once for all; zero gradients.
      decode: (params, nodes, slot, plan) -> flat parameter vectors of the networks in a slot.
      pull_back: (params, nodes, slot, plan, gradient of the flat vectors) -> gradients of the networks in a slot.
      add: (gradients, slot, those of the networks in it) -> gradients.
      pull_back_nodes: (params, graphs, gradients, max_nodes=...) -> gradient of all weights, summed over networks
        of a device.
      update: (state, that gradient, losses, hits) -> state, metrics. It takes longest to compile, and takes no graphs,
        so that it is compiled once for all meta-batches.
    """

    embed: Pmapped
    decode: Pmapped
    pull_back: Pmapped
    add: Pmapped
    pull_back_nodes: Pmapped
    update: Pmapped

    def to_compile(self, state: TrainState, batch: PreparedBatch) -> list[Program]:
        """What a step of a meta-batch will run and is not compiled yet, each once.

        Args:
          state: replicated; shapes suffice.
        """
        one, losses = np.int32(0), np.zeros((len(batch.networks[0]), len(batch.plans)), np.float32)
        embed = self.embed.program(state.params, batch.graphs, max_nodes=batch.max_nodes)
        nodes, gradients = embed.results
        whole = self.pull_back_nodes.program(state.params, batch.graphs, gradients, max_nodes=batch.max_nodes)
        update = self.update.program(state, whole.results, losses, losses)
        programs = [update, whole, embed]  # about longest first
        for plan in batch.plans:
            decode = self.decode.program(state.params, nodes, one, plan)
            pull_back = self.pull_back.program(state.params, nodes, one, plan, decode.results)
            programs += [pull_back, decode, self.add.program(gradients, one, pull_back.results)]
        return [program for program in dict.fromkeys(programs) if not program.is_compiled]


def make_ghn_step(
    config: GHNConfig,
    templates: tuple[Template, ...],
    optimizer: optax.GradientTransformation,
    devices: Sequence[Any],
    recipe: Recipe = PUBLISHED,
) -> GHNStep:
    """Builds the pmapped functions for a GHN configuration; they compile when first used.

    The optimiser is the recipe's, from `Recipe.make_optimizer`.
    """
    ghn = GHN(config)
    pmap = functools.partial(Pmapped, devices=devices, options=options_for("ghn"))

    def node_embeddings(params: Params, graphs, max_nodes: int) -> Array:
        return cast(Array, ghn.apply({"params": params}, graphs, max_nodes, method="embed"))

    def flat_vector(decoder: Params, nodes: Array, plan) -> Array:
        variables = {"params": {"decoder": decoder}}
        return cast(Array, ghn.apply(variables, nodes, plan, templates, method="decode"))

    def embed(params, graphs, *, max_nodes):
        nodes = node_embeddings(params, graphs, max_nodes)
        nodes = jnp.pad(nodes, ((0, 0), (0, max(0, _MIN_NODES - max_nodes)), (0, 0)))
        zeros = Gradients(jax.tree.map(jnp.zeros_like, params["decoder"]), jnp.zeros_like(nodes))
        return nodes, zeros

    def decode(params, nodes, slot, plan):
        return flat_vector(params["decoder"], nodes[slot], plan)

    def pull_back(params, nodes, slot, plan, flat_gradient):
        flat, vjp = jax.vjp(lambda decoder, h: flat_vector(decoder, h, plan), params["decoder"], nodes[slot])
        if recipe.norm_penalty:
            flat_gradient += recipe.norm_penalty * norms_gradient(flat, plan.tensors)
        gradients = Gradients(*vjp(flat_gradient))
        return gradients if recipe.network_clip is None else _clipped(gradients, recipe.network_clip)

    def add(gradients, slot, own):
        decoder = jax.tree.map(jnp.add, gradients.decoder, own.decoder)
        return Gradients(decoder, gradients.nodes.at[slot].add(own.nodes))

    def pull_back_nodes(params, graphs, gradients, *, max_nodes):
        _, vjp = jax.vjp(lambda params: node_embeddings(params, graphs, max_nodes), params)
        (gradient,) = vjp(gradients.nodes[:, :max_nodes])
        return gradient | {"decoder": jax.tree.map(jnp.add, gradient["decoder"], gradients.decoder)}

    def update(state, gradient, losses, hits):
        gradient = jax.tree.map(lambda g: jax.lax.pmean(g / len(losses), AXIS), gradient)
        if recipe.network_clip is not None:  # a network that blew up is left out
            losses = jnp.where(jnp.isfinite(losses), losses, jnp.nan)
            loss = jnp.nanmean(jax.lax.all_gather(losses, AXIS))
        else:
            loss = jax.lax.pmean(losses.mean(), AXIS)
        top1 = jax.lax.pmean(100.0 * hits.mean(), AXIS)
        return _apply(optimizer, state, gradient, loss, top1, recipe.average)

    return GHNStep(
        embed=pmap(embed),
        decode=pmap(decode, in_axes=(0, 0, None, 0)),
        pull_back=pmap(pull_back, in_axes=(0, 0, None, 0, 0)),
        add=pmap(add, in_axes=(0, None, 0), donate_argnums=0),
        pull_back_nodes=pmap(pull_back_nodes),
        update=pmap(update),
    )


def _clipped(gradients: Gradients, largest: float) -> Gradients:
    """One network's gradients, scaled down to a norm of at most `largest`; none if they are not finite."""
    norm = optax.tree.norm(gradients)
    scale = jnp.minimum(1.0, largest / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda g: jnp.where(jnp.isfinite(norm), scale * g, 0.0), gradients)


def _apply(
    optimizer, state: TrainState, gradient: Params, loss: Array, top1: Array, average: float | None
) -> tuple[TrainState, Metrics]:
    """Updates the weights, unless loss, gradient or new weights are not finite: the step is then skipped."""
    norm = optax.tree.norm(gradient)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # the norm of weights overflows long before they do
    finite = jnp.isfinite(jnp.stack([loss, norm, optax.tree.norm(params)])).all() & _all_finite(opt_state)
    # jnp.where would have `finite` worked out again for every weight, and take half as long again to compile
    params, opt_state = jax.lax.cond(
        finite, lambda new, _: new, lambda _, old: old, (params, opt_state), (state.params, state.opt_state)
    )
    averaged = None
    if average is not None:
        decay = jnp.minimum(
            average, (state.step + 1) / (state.step + 10)
        )  # the first steps are forgotten sooner
        averaged = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state.average, params)
    skipped = jnp.where(finite, 0, state.skipped + 1)
    return TrainState(params, opt_state, state.step + 1, skipped, averaged), Metrics(loss, top1, norm)


def _all_finite(tree: Any) -> Array:
    return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)], bool).all()


def meta_step(
    ghn: GHNStep,
    state: TrainState,
    batch: PreparedBatch,
    images: Sequence[Array],
    labels: Sequence[Array],
    dropout_key: Array | None,
    label_smoothing: float = 0.0,
    micro_batch_size: int | None = None,
) -> tuple[TrainState, Metrics]:
    """Predicts the parameters of all networks of a meta-batch, runs them, and updates the GHN.

    Args:
      state: replicated over devices.
      batch: the networks, from `ghn_jax.training.prepare`.
      images, labels: batches of images, the same ones on each device: (group, batch, height, width, 3). Networks take
        them in turn, each the batch of its place in the meta-batch, so with a single one all see the same images.
      dropout_key: folded with the place of each network in the meta-batch; None runs without dropout.
      micro_batch_size: images that a network runs on at a time; None for all.

    Raises OutOfMemory.
    """
    graphs = batch.graphs
    nodes, gradients = ghn.embed(state.params, graphs, max_nodes=batch.max_nodes)

    def run_slot(index: int) -> _SlotOutcome:
        slot, plan = np.int32(index), batch.plans[index]
        flat = ghn.decode(state.params, nodes, slot, plan)
        outcomes, hits = [], []
        for shard, network, place, x, y in zip(
            flat.addressable_shards, batch.networks[index], batch.places[index], images, labels, strict=True
        ):
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, place)
            # as an array of this device alone: compiled blocks are looked up by sharding too
            own = jax.device_put(shard.data, shard.device)
            group = place % len(x)
            size = micro_batch_size or x.shape[1]
            try:
                outcome = run.accumulate(network.program, own, x[group], y[group], size, key, label_smoothing)
            except jax.errors.JaxRuntimeError as error:
                raise _explained(error, network, place, x.shape[1]) from error
            outcomes.append(outcome)
            hits.append(_accuracy(outcome.logits, y[group]))
        flat_gradient = _stack_shards(flat, [o.gradient for o in outcomes])
        return _SlotOutcome(
            ghn.pull_back(state.params, nodes, slot, plan, flat_gradient),
            [o.loss for o in outcomes],
            hits,
        )

    losses, hits = [], []
    for slot, outcome in enumerate(run_in_lanes(run_slot, len(batch.plans))):  # in order, to round alike
        gradients = ghn.add(gradients, np.int32(slot), outcome.gradients)
        losses.append(outcome.losses)
        hits.append(outcome.hits)
    gradient = ghn.pull_back_nodes(state.params, graphs, gradients, max_nodes=batch.max_nodes)
    return ghn.update(state, gradient, _by_device(losses), _by_device(hits))


class _SlotOutcome(NamedTuple):
    """Of the networks of a slot, one on each device."""

    gradients: Gradients
    losses: list[Array]
    hits: list[Array]


def _explained(error: Exception, network: Lowered, place: int, batch_size: int) -> Exception:
    if not origin.is_out_of_memory(error):
        return error
    return OutOfMemory(
        f"`batch_size` (={batch_size}): a network of {network.num_parameters:,} parameters and "
        f"{len(network.program)} blocks does not fit the device's memory: lower it, or --micro_batch_size",
        place,
    )


def _stack_shards(like: Array, shards: list[Array]) -> Array:
    """The array with these shards, laid out over devices as `like`."""
    return jax.make_array_from_single_device_arrays(like.shape, like.sharding, shards)


def _by_device(scalars: list[list[Array]]) -> np.ndarray:
    """[slot][device] scalars as one array [device, slot]."""
    return np.array(scalars, np.float32).T


@jax.jit
def _accuracy(logits: Float[Array, "batch label"], labels: Int[Array, " batch"]) -> Array:
    return (logits.argmax(-1) == labels).mean()


def init_state(
    config: GHNConfig,
    optimizer: optax.GradientTransformation,
    key: Array,
    recipe: Recipe = PUBLISHED,
    params: Params | None = None,
) -> TrainState:
    """A GHN with these weights, or a fresh one as the recipe says, and its optimiser; not replicated."""
    once = functools.partial(jax.jit, compiler_options=options_for("once"))
    if params is None:
        params = cast(Params, once(functools.partial(init_params, config))(key))
        params = near_identity(params) if recipe.start == "near_identity" else params
    zero = jnp.zeros((), jnp.int32)
    average = None if recipe.average is None else params
    return TrainState(params, once(optimizer.init)(params), zero, zero, average)
