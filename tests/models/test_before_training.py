"""Noise and orthogonal weights for predicted parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ghn_jax
from ghn_jax.models.before_training import add_noise, correlation_spread, layer_names, orthogonalize


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    half = rng.standard_normal((3, 3, 8, 8)).astype(np.float32)
    return {
        "conv": {"kernel": jnp.asarray(np.tile(half, (1, 1, 2, 2))), "bias": jnp.zeros(16)},
        "dense": {"kernel": jnp.asarray(rng.standard_normal((16, 40)), jnp.bfloat16)},
        "head": {"kernel": jnp.asarray(rng.standard_normal((40, 10)), jnp.float32)},
    }


LAYERS = ("conv.kernel", "dense.kernel")


def test_noise_tells_repeated_channels_apart(params):
    noisy = add_noise(params, 1e-3, seed=1, layers=LAYERS)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), noisy) == jax.tree.map(
        lambda x: (x.shape, x.dtype), params
    )
    kernel, before = noisy["conv"]["kernel"], params["conv"]["kernel"]
    np.testing.assert_array_equal(before[..., :8], before[..., 8:])
    assert (kernel[..., :8] != kernel[..., 8:]).all()
    spread = np.corrcoef(np.asarray(before.reshape(144, 16), np.float64)).std(ddof=1)
    assert np.std(kernel - before) == pytest.approx(1e-3 * spread, rel=0.05)
    np.testing.assert_array_equal(noisy["head"]["kernel"], params["head"]["kernel"])
    again = add_noise(params, 1e-3, seed=1, layers=LAYERS)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), again, noisy))
    assert (add_noise(params, 1e-3, seed=2, layers=LAYERS)["conv"]["kernel"] != kernel).any()


def test_noise_beyond_the_decoded_channels(params):
    kernel = add_noise(params, 1e-3, beyond=8)["conv"]["kernel"] - params["conv"]["kernel"]
    assert not kernel[..., :8, :].any()
    assert not kernel[..., :8].any()
    assert kernel[..., 8:, 8:].all()


def test_orthogonal_weights(params):
    changed = orthogonalize(params, layers=LAYERS, beyond=16)
    np.testing.assert_array_equal(changed["conv"]["kernel"], params["conv"]["kernel"])
    dense = np.asarray(changed["dense"]["kernel"], np.float32)
    np.testing.assert_allclose(dense @ dense.T, np.eye(16), atol=0.02)
    kernel = np.random.default_rng(1).standard_normal((3, 3, 4, 50)).astype(np.float32)
    matrix = kernel.transpose(3, 2, 0, 1).reshape(50, 36)  # as in PyTorch
    q, r = np.linalg.qr(matrix)
    expected = (q * np.sign(np.diag(r))).reshape(50, 4, 3, 3).transpose(2, 3, 1, 0)
    np.testing.assert_allclose(orthogonalize({"k": kernel})["k"], expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(30, 7), (7, 30), (5, 5)])
def test_spread_of_correlations(shape):
    matrix = np.random.default_rng(0).standard_normal(shape) + 1
    tall = matrix if shape[0] >= shape[1] else matrix.T
    assert correlation_spread(matrix) == pytest.approx(np.corrcoef(tall).std(ddof=1))


def test_layers_of_a_graph_in_order_without_the_last():
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    names = layer_names(ghn_jax.graph_of(ghn_jax.target("resnet18", 10, 32), images))
    assert (names[0], len(names)) == ("conv1.kernel", 20)
    assert not any(name.startswith("fc") for name in names)
    assert layer_names(ghn_jax.graph_of(ghn_jax.target("resnet18", 10, 32), images), first=18) == names[18:]


def test_unknown_layer(params):
    with pytest.raises(ValueError, match=r"`layers` names 'stem\.kernel', which `params` lacks"):
        orthogonalize(params, layers=["stem.kernel"])
