"""What GHN-3 does differently: Graphormer layers, windows, class tokens, start of weights."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ghn_jax
from ghn_jax.deepnets import sampling
from ghn_jax.deepnets.lowering import lower
from ghn_jax.deepnets.networks import CellNetwork, from_params
from ghn_jax.evaluation.accuracy import predict_flat
from ghn_jax.executor.layouts import unflatten
from ghn_jax.models.config import PRESETS, ghn3, preset
from ghn_jax.models.ghn import init_params
from ghn_jax.models.graphormer import Graphormer, PathBias
from ghn_jax.models.templates import deepnets_templates
from ghn_jax.models.windows import WINDOWS
from ghn_jax.pretrained import TrainedGHN, public_names
from ghn_jax.runtime import compilation

SMALL = ghn3(hidden=16, layers=2, heads=4)


@pytest.fixture(scope="module")
def ghn() -> TrainedGHN:
    return TrainedGHN(SMALL, init_params(SMALL, jax.random.key(0)), {})


@pytest.mark.parametrize(
    ("name", "millions"), [("ghn3-t", 6.9), ("ghn3-s", 35.8), ("ghn3-l", 214.7), ("ghn3-xl", 654.4)]
)
def test_presets_have_the_published_sizes(name, millions):
    shapes = public_names.state_dict_shapes(preset(name, 1000, 224))
    assert round(sum(np.prod(shape) for shape in shapes.values()) / 1e6, 1) == millions


@pytest.mark.parametrize("name", PRESETS)
def test_public_names_cover_all_weights(name):
    config = dataclasses.replace(preset(name), hidden=16, channels=16)
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    shapes = public_names.state_dict_shapes(config)
    zeros = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    assert jax.tree.map(np.shape, public_names.from_state_dict(config, zeros)) == jax.tree.map(
        jnp.shape, params
    )


def test_bias_of_each_pair_is_that_of_both_its_lengths():
    hops = np.zeros((1, 5, 5), np.int32)
    hops[0, 0, 1:] = 1, 2, 3, 50
    module = PathBias(heads=2, features=8)
    variables: Any = module.init(jax.random.key(0), hops)
    bias: Any = module.apply(variables, hops)
    table, mlp = variables["params"]["edge_embed"], variables["params"]["proj_e"]
    for u, v in ((0, 4), (4, 0), (2, 2), (0, 1)):
        x = np.concatenate([table[hops[0, u, v] + 2], table[hops[0, v, u] + 2]])
        x = np.maximum(x @ mlp["fc.0"]["kernel"] + mlp["fc.0"]["bias"], 0)
        np.testing.assert_allclose(
            bias[0, :, u, v], x @ mlp["fc.2"]["kernel"] + mlp["fc.2"]["bias"], rtol=1e-4
        )


def test_padding_makes_no_difference():
    module = Graphormer(layers=2, heads=2)
    nodes = jax.random.normal(jax.random.key(0), (2, 6, 8))
    hops = jnp.triu(jnp.arange(6) - jnp.arange(6)[:, None], 1)[None] * jnp.array([1, 0])[:, None, None]
    variables = jax.jit(module.init)(jax.random.key(1), nodes, hops)
    padded: Any = jax.jit(module.apply)(
        variables, jnp.pad(nodes, ((0, 0), (0, 3), (0, 0))), jnp.pad(hops, ((0, 0), (0, 3), (0, 3)))
    )
    expected: Any = jax.jit(module.apply)(variables, nodes, hops)
    np.testing.assert_allclose(padded[0, :6], expected[0], atol=1e-5)
    np.testing.assert_allclose(padded[1, 0], expected[1, 0], atol=1e-5)  # a graph of one node
    assert jnp.isfinite(padded).all()


@pytest.mark.parametrize(
    ("size", "part"), [(1, (8, 9)), (3, (7, 10)), (4, (6, 10)), (16, (0, 16)), (32, (0, 16))]
)
def test_centre_window(size, part):
    assert WINDOWS["centre"].part(size, 16) == slice(*part)
    assert WINDOWS["corner"].part(size, 16) == slice(0, min(size, 16))


def test_larger_kernels_are_interpolated_or_repeated():
    np.testing.assert_allclose(WINDOWS["centre"].enlarge(4, 2) @ [0, 1], [0, 0.25, 0.75, 1])
    np.testing.assert_allclose(WINDOWS["centre"].enlarge(3, 2) @ [0, 1], [0, 0.5, 1])
    np.testing.assert_allclose(WINDOWS["corner"].enlarge(5, 2) @ [0, 1], [0, 1, 0, 1, 0])


class Tokens(nn.Module):
    """Patches, a class token, a positional encoding; a kernel larger than the table."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(40, (16, 16), (8, 8), name="patches")(x).reshape(len(x), -1, 40)
        x = jnp.concatenate(
            [jnp.broadcast_to(self.param("token", nn.initializers.ones, (1, 1, 40)), (len(x), 1, 40)), x], 1
        )
        x += self.param("position", nn.initializers.zeros, (1, 17, 40))
        return nn.Dense(10, name="head")(nn.LayerNorm(name="ln")(x)[:, 0])


def test_encoding_with_a_class_token_is_predicted_but_for_its_row(ghn):
    with pytest.warns(UserWarning, match="1 parameter keeps its own initialisation: token"):
        variables, report = ghn_jax.predict_parameters(Tokens(), jnp.zeros((1, 32, 32, 3)), ghn)
        again, _ = ghn_jax.predict_parameters(Tokens(), jnp.zeros((1, 32, 32, 3)), ghn, seed=1)
    graph = report.graph
    assert graph.shapes[graph.names.index("position")] == (1, 40, 4, 4)
    position = np.asarray(variables["params"]["position"])[0]
    assert 0.01 < position[0].std() < 0.04  # drawn
    np.testing.assert_array_equal(position[1:, :8], position[1:, 16:24])  # repeats what is decoded
    assert len(np.unique(position[1:], axis=0)) == 16
    assert len(np.unique(position[1:, :16], axis=1).T) == 16  # channels differ
    assert np.abs(again["params"]["position"][0, 0] - position[0]).max() > 0
    np.testing.assert_array_equal(again["params"]["position"][0, 1:], position[1:])


def test_both_ways_to_decode_agree(ghn):
    """The executor's flat vector, and tensors for a model of any kind."""
    arch = sampling.sample("test", 3)
    network = lower(arch)
    flat = predict_flat(ghn.config, ghn.params, network, deepnets_templates(ghn.config, 32))
    tensors = unflatten(network.parameters, np.asarray(flat))
    variables, _ = ghn_jax.predict_parameters(CellNetwork(arch, 10, 32), jnp.zeros((1, 32, 32, 3)), ghn)
    expected = from_params(variables["params"])
    assert set(expected) == set(tensors)
    for name, tensor in expected.items():
        np.testing.assert_allclose(tensors[name], tensor, atol=2e-6, err_msg=name)


def test_second_model_compiles_nothing(ghn):
    images = jnp.zeros((1, 32, 32, 3))
    ghn_jax.predict_parameters(ghn_jax.target("resnet18", 10, 32), images, ghn)
    counter = compilation.CompilationCounter()
    counter.register()
    ghn_jax.predict_parameters(ghn_jax.target("resnet34", 10, 32), images, ghn)
    ghn_jax.predict_parameters(ghn_jax.target("mobilenet_v2", 10, 32), images, ghn)
    assert counter.count + counter.cached == 0


def test_last_layers_start_small_and_embeddings_like_a_transformer(ghn):
    for name, fan_in in {
        "decoder.conv.2": 128,
        "decoder_1d.fc.2": 32,
        "decoder.class_layer_predictor.1": 16,
    }.items():
        largest = np.abs(ghn.params["decoder"][f"{name}.weight"]).max()
        assert largest == pytest.approx(0.2 / np.sqrt(fan_in), rel=0.05)
        assert not ghn.params["decoder"][f"{name}.bias"].any()
    assert np.abs(ghn.params["decoder"]["bias_class.1.weight"]).max() > 0.2
    assert np.std(ghn.params["primitive_embedding"]["weight"]) == pytest.approx(16**-0.5, rel=0.1)
    assert np.std(ghn.params["shape_encoder"]["embed_channel"]["weight"]) == pytest.approx(4**-0.5, rel=0.1)
