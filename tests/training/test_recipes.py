"""Recipes: what they do to gradients, learning rates and weights."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ghn_jax.deepnets import sampling
from ghn_jax.deepnets.lowering import lower
from ghn_jax.models.config import GHNConfig, preset
from ghn_jax.models.full_rank import decode_positions
from ghn_jax.models.ghn import init_params
from ghn_jax.models.templates import deepnets_templates, make_plan, plan_size
from ghn_jax.training import meta
from ghn_jax.training.meta import Gradients, TrainState
from ghn_jax.training.options import TrainOptions
from ghn_jax.training.penalty import norms_gradient
from ghn_jax.training.recipes import RECIPES, Recipe, matrices, recipe

WEIGHTS = {"w": jnp.array([1.0, -2.0])}


def rates(chosen: Recipe, steps: int) -> np.ndarray:
    """Learning rates, read off the updates that Adam makes of a constant gradient."""
    optimizer = chosen.make_optimizer(steps)
    update: Any = jax.jit(optimizer.update)
    state, seen = optimizer.init(WEIGHTS), []
    for _ in range(steps):
        updates, state = update({"w": jnp.ones(2)}, state, jax.tree.map(jnp.zeros_like, WEIGHTS))
        seen.append(-float(updates["w"][0]))
    return np.array(seen)


def test_published_is_adam_with_coupled_decay_and_two_drops():
    published = recipe("published")
    assert (published.network_clip, published.average, published.clip) == (None, None, 5.0)
    np.testing.assert_allclose(rates(published, 12), [1e-3] * 8 + [1e-4] * 2 + [1e-5] * 2, rtol=1e-4)
    optimizer = published.make_optimizer(10)
    update: Any = optimizer.update
    updates, _ = update({"w": jnp.zeros(2)}, optimizer.init(WEIGHTS), WEIGHTS)
    assert jnp.all(jnp.sign(updates["w"]) == -jnp.sign(WEIGHTS["w"])), "decay is part of the gradient"


def test_ghn3_is_adamw_with_warm_up_and_a_penalty():
    chosen = TrainOptions(preset="ghn3-t", dataset="imagenet", data_dir=None).resolve()
    assert (chosen.recipe, chosen.batch_size, chosen.epochs, chosen.meta_batch_size) == ("ghn3", 128, 75, 8)
    assert chosen.label_smoothing == 0.1
    assert TrainOptions(preset="ghn3-xl", dataset="cifar10").resolve().meta_batch_size == 16
    assert TrainOptions(preset="ghn3-t").resolve().recipe == "ghn3"
    full = chosen.full_recipe()
    assert (full.optimizer, full.learning_rate, full.weight_decay, full.clip) == ("adamw", 4e-4, 1e-2, 5.0)
    assert full.norm_penalty == 3e-5
    seen: Any = full._schedule(75)
    np.testing.assert_allclose([seen(0), seen(5), seen(75)], [1e-5, 4e-4, 0], rtol=1e-5, atol=1e-9)


def test_penalty_is_the_sum_of_the_norms_of_tensors():
    sizes = (3, 1, 2)  # rows
    flat = jax.random.normal(jax.random.key(0), (8, 8)).at[6:].set(0)
    tensors = jnp.array([0, 3, 4, 8, 8])  # padded

    def total(flat):
        ends = np.cumsum(sizes)
        return sum(jnp.linalg.norm(flat[end - size : end]) for end, size in zip(ends, sizes, strict=True))

    np.testing.assert_allclose(
        jax.jit(norms_gradient)(flat, tensors), jax.jit(jax.grad(total))(flat), rtol=1e-5
    )
    np.testing.assert_array_equal(jax.jit(norms_gradient)(jnp.zeros((8, 8)), tensors), 0)


def test_plans_tell_where_tensors_begin():
    config = dataclasses.replace(GHNConfig(), hidden=8)
    network = lower(sampling.sample("train", 0))
    plan = make_plan(network, config, deepnets_templates(config, 32))
    starts = plan.tensors[plan.tensors < len(plan.rows)]
    assert starts.tolist() == [p.offset // 8 for p in network.parameters]


def test_narrow_networks_have_plans_of_one_size():
    config = preset("ghn2", 10, 16)
    templates = deepnets_templates(config, 16)
    networks = [
        n for step in range(6, 18) for n in sampling.meta_batch(0, step, 4, 10, 16, draw="narrow").networks
    ]
    assert len({plan_size(network, config, templates).rows for network in networks}) == 1


def test_cosine_rises_and_ends_near_nothing():
    seen = rates(Recipe(schedule="cosine", warm_up=0.1), 100)
    assert seen.argmax() == 10
    assert seen[0] < 1e-4 and seen[-1] < 1e-5
    np.testing.assert_allclose(seen.max(), 1e-3, rtol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_network_is_scaled_down_or_left_out(bad: float):
    large = Gradients({"w": jnp.array([30.0, 0.0])}, jnp.array([[0.0, 40.0]]))
    clipped = meta._clipped(large, 1.0)
    np.testing.assert_allclose(optax.tree.norm(clipped), 1.0, rtol=1e-6)
    small = Gradients({"w": jnp.array([0.3, 0.0])}, jnp.array([[0.0, 0.4]]))
    np.testing.assert_array_equal(meta._clipped(small, 1.0).nodes, small.nodes)
    broken = Gradients({"w": jnp.array([bad, 1.0])}, jnp.ones((1, 2)))
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(meta._clipped(broken, 1.0)))


def test_average_follows_the_weights_and_is_what_is_used():
    optimizer, zero = optax.sgd(1.0), jnp.zeros((), jnp.int32)
    state = TrainState(WEIGHTS, optimizer.init(WEIGHTS), zero, zero, WEIGHTS)
    for _ in range(200):
        gradient = {"w": state.params["w"] - 5.0}
        state, _ = meta._apply(optimizer, state, gradient, jnp.zeros(()), jnp.zeros(()), average=0.9)
    np.testing.assert_allclose(state.best_params["w"], 5.0, rtol=1e-5)
    first = TrainState(WEIGHTS, optimizer.init(WEIGHTS), zero, zero, WEIGHTS)
    first, _ = meta._apply(optimizer, first, {"w": jnp.ones(2)}, jnp.zeros(()), jnp.zeros(()), average=0.9)
    np.testing.assert_allclose(first.best_params["w"], 0.1 * WEIGHTS["w"] + 0.9 * (WEIGHTS["w"] - 1.0))


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match=r"`recipe` \(='publshed'\) is unknown: did you mean 'published'"):
        TrainOptions(recipe="publshed").resolve()


@pytest.mark.parametrize("name", RECIPES)
def test_options_of_a_recipe_can_be_overridden(name: str):
    options = TrainOptions(recipe=name, clip=2.5).resolve()
    assert options.full_recipe().clip == 2.5
    assert options.full_recipe().learning_rate == RECIPES[name].learning_rate


def test_near_identity_passes_channels_on():
    """What an untrained GHN decodes for a 1x1 convolution is nearly the identity, but for its first channels."""
    config = preset("ghn2")
    optimizer = RECIPES["efficient"].make_optimizer(10)
    state = meta.init_state(config, optimizer, jax.random.key(0), RECIPES["efficient"])
    nodes = jax.random.normal(jax.random.key(1), (3, config.hidden))
    kernels = decode_positions(state.params["decoder"], nodes, jnp.zeros(3, int), jnp.ones(3))
    diagonal = jnp.diagonal(kernels, axis1=1, axis2=2)[:, 4:]
    others = (kernels - 2.0 * jnp.eye(config.channels))[:, 4:]
    assert diagonal.min() > 1.5
    assert jnp.abs(others).mean() < 0.1
    published = meta.init_state(config, optimizer, jax.random.key(0)).params
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state.params, published)
    assert {name for name, differs in changed["decoder"].items() if differs} == {
        "decoder.conv.2.bias",
        "decoder.conv.2.weight",
        "decoder_1d.fc.2.bias",
    }


@pytest.mark.parametrize("name", ["ghn2", "ghn3-t"])
def test_muon_takes_each_weight_of_the_decoder_as_one_matrix(name: str):
    weights = jax.eval_shape(lambda: init_params(preset(name), jax.random.key(0)))
    axes = matrices(weights)
    assert axes["decoder"]["decoder.conv.2.weight"] == ((0,), (1, 2))
    assert axes["decoder"]["decoder.fc.0.weight"] == ((2,), (0, 1, 3))
    assert axes["decoder"]["decoder.conv.2.bias"] is None
    assert axes["primitive_embedding"]["weight"] is None


def test_muon_makes_updates_orthogonal():
    """All singular values of an update are alike, those of the gradient are not."""
    weights = {"decoder": {"decoder.conv.2.weight": jnp.zeros((8, 4, 16))}}
    key = jax.random.key(0)
    gradient = jax.tree.map(lambda w: jax.random.normal(key, w.shape) + 3.0, weights)
    optimizer = Recipe(optimizer="muon", clip=1e9).make_optimizer(10)
    update: Any = optimizer.update
    updates, _ = update(gradient, optimizer.init(weights), weights)

    def spread(tree: Any) -> float:
        values = np.linalg.svd(np.asarray(tree["decoder"]["decoder.conv.2.weight"]).reshape(8, -1))[1]
        return float(values.max() / values.min())

    assert spread(updates) < 3.0 < spread(gradient)
