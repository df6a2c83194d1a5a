"""The low-rank decoder: products of two matrices, without repetition, for models of images and of tokens."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ghn_jax
from benchmarks.low_rank import LanguageModel
from ghn_jax.deepnets.architectures import Architecture, Genotype
from ghn_jax.deepnets.lowering import lower
from ghn_jax.deepnets.networks import CellNetwork, from_params
from ghn_jax.evaluation.accuracy import predict_flat
from ghn_jax.executor.layouts import unflatten
from ghn_jax.models import low_rank
from ghn_jax.models.config import logah, preset
from ghn_jax.models.ghn import init_params
from ghn_jax.models.near_identity import near_identity
from ghn_jax.models.templates import deepnets_templates
from ghn_jax.pretrained import TrainedGHN, load, save

CONFIG = dataclasses.replace(logah(hidden=16, layers=1, heads=2, rank=4), num_classes=50)


@pytest.fixture(scope="module")
def ghn() -> TrainedGHN:
    return TrainedGHN(CONFIG, init_params(CONFIG, jax.random.key(0)), {})


class Wide(nn.Module):
    """A layer as wide as the decoder reaches, and one that is wider."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(2048, name="full")(x.reshape(len(x), -1)))
        return nn.Dense(50, name="head")(nn.relu(nn.Dense(2100, name="wider")(x)))


def test_weights_have_the_rank_and_no_channel_repeats(ghn: TrainedGHN):
    variables, report = ghn_jax.predict_parameters(Wide(), jnp.zeros((1, 4, 4, 3)), ghn)
    assert not report.unassigned
    layers = jax.tree.map(np.asarray, variables["params"])
    full, wider = layers["full"]["kernel"], layers["wider"]["kernel"]
    for kernel in (full, wider[:64, :256], layers["head"]["kernel"][:256]):
        values = np.linalg.svd(kernel, compute_uv=False)
        assert values[3] > 1e3 * values[4]  # rank 4
    assert len(np.unique(full, axis=1).T) == len(np.unique(layers["full"]["bias"])) == 2048
    assert len(np.unique(wider, axis=0)) == 2048
    np.testing.assert_array_equal(wider[:, 2048:], wider[:, :52])


def test_a_language_model_is_predicted_with_its_shared_table(ghn: TrainedGHN):
    model, tokens = LanguageModel(50, features=32, layers=2, heads=4), jnp.arange(16)[None] % 50
    variables, report = ghn_jax.predict_parameters(model, tokens, ghn)
    assert not report.unassigned
    assert report.parameters == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    table = np.asarray(variables["params"]["embed"]["embedding"])
    assert len(np.unique(table, axis=0)) == 50
    logits: Any = model.apply(variables, tokens)
    assert logits.shape == (1, 16, 50)
    assert jnp.isfinite(logits).all()


def test_both_ways_to_decode_agree():
    """The executor's flat vector, and tensors for a model of any kind."""
    config = dataclasses.replace(CONFIG, num_classes=10)
    params = init_params(config, jax.random.key(0))
    cell = (("conv_3x3", 0), ("sep_conv_3x3", 1))
    arch = Architecture(Genotype(cell, (2,), cell, (2,)), 1, C=160, C_mult=1, fc_layers=2, fc_dim=64)
    network, forms = lower(arch), deepnets_templates(config, 32)
    used = tuple(form for form in forms if form.height == form.width <= 3 and form.inputs < 2048)
    used += tuple(form for form in forms if form.role == "class_weight")
    tensors = unflatten(network.parameters, np.asarray(predict_flat(config, params, network, used)))
    ghn = TrainedGHN(config, params, {})
    variables, _ = ghn_jax.predict_parameters(CellNetwork(arch), jnp.zeros((1, 32, 32, 3)), ghn)
    expected = from_params(variables["params"])
    assert set(expected) == set(tensors)
    for name, tensor in expected.items():
        np.testing.assert_allclose(tensors[name], tensor, atol=1e-6, err_msg=name)


def test_the_decoder_grows_linearly_with_the_channels_that_it_reaches():
    sizes = []
    for channels in (512, 1024, 1536, 2048):
        config = dataclasses.replace(preset("logah-t", 1000, 224), channels=channels)
        layers = low_rank.layers(config).values()
        sizes.append(sum(math.prod(layer.kernel) + math.prod(layer.bias or (0,)) for layer in layers))
    assert np.ptp(np.diff(sizes)) == 0
    assert sizes[0] < sizes[-1] < 2.5e6


def test_round_trip_of_a_file(ghn: TrainedGHN, tmp_path):
    save(tmp_path / "ghn.safetensors", ghn)
    loaded = load(tmp_path / "ghn.safetensors")
    assert loaded.config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, loaded.params, jax.tree.map(np.asarray, ghn.params))


def test_the_start_near_the_identity_is_of_the_other_decoder(ghn: TrainedGHN):
    with pytest.raises(ValueError, match=r"`start`.*near_identity.*--recipe=ghn3"):
        near_identity(ghn.params)


def test_more_classes_than_it_reaches_are_an_error():
    with pytest.raises(ValueError, match=r"`num_classes` \(=50257\).*32768"):
        preset("logah-t", 50257, 224)
