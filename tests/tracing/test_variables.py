"""What comes back is a tree as the model has it; what cannot be given in is said in one line."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import ghn_jax
from ghn_jax.evaluation.models import export
from ghn_jax.graphs import PRIMITIVES

IMAGES = jnp.zeros((1, 8, 8, 3))


class Plain(nn.Module):
    """A classifier of one layer."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(x.mean((1, 2)))


def test_dtypes_are_those_of_the_initialisers():
    class Half(nn.Module):
        @nn.compact
        def __call__(self, x):
            w = self.param("w", nn.initializers.normal(0.02, jnp.bfloat16), (3, 16))
            b = self.param("b", nn.initializers.zeros, (16,))
            return nn.Dense(10, param_dtype=jnp.float16)(x.mean((1, 2)) @ w + b)

    variables, _ = ghn_jax.predict_parameters(Half(), IMAGES)
    expected = Half().init(jax.random.key(0), IMAGES)
    assert jax.tree.map(jnp.result_type, variables) == jax.tree.map(jnp.result_type, expected)


def test_shapes_of_parameters_may_be_numbers_or_none():
    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x):
            scale = self.param("scale", nn.initializers.ones, ())
            return nn.Dense(10)((scale * x).mean((1, 2)) + self.param("bias", nn.initializers.zeros, 3))

    with pytest.warns(UserWarning, match="scale is an elementwise scale of a map"):
        variables, _ = ghn_jax.predict_parameters(Scaled(), IMAGES)
    assert variables["params"]["scale"] == 1 and variables["params"]["bias"].shape == (3,)


def test_boxes_of_partitioned_parameters_survive():
    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x):
            kernel = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
            logical = nn.with_logical_partitioning(nn.initializers.zeros, ("classes",))
            return nn.Dense(10, kernel_init=kernel, bias_init=logical)(x.mean((1, 2)))

    variables, _ = ghn_jax.predict_parameters(Boxed(), IMAGES, strict=True)
    assert jax.tree.structure(variables) == jax.tree.structure(Boxed().init(jax.random.key(0), IMAGES))
    assert ghn_jax.apply_by_batch(Boxed(), variables, IMAGES).shape == (1, 10)


def test_state_may_be_scalar():
    class Spectral(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(10)(nn.SpectralNorm(nn.Conv(16, (3, 3)))(x, update_stats=False).mean((1, 2)))

    variables, _ = ghn_jax.predict_parameters(Spectral(), IMAGES, strict=True)
    by_batch = ghn_jax.apply_by_batch(Spectral(), variables, IMAGES + 1)
    plain: Any = Spectral().apply(variables, IMAGES + 1)
    np.testing.assert_allclose(by_batch, plain, rtol=1e-4, atol=1e-5)


class Normalised(nn.Module):
    """A layer divided by the norms of its kernel, which are state that its initialisation computes."""

    @nn.compact
    def __call__(self, x, _=None):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], 16))
        self.variable("state", "copy", lambda: kernel)
        self.variable("state", "noise", lambda: jax.random.normal(self.make_rng("params"), (16,)))
        norm = self.variable("state", "norm", lambda: jnp.linalg.norm(kernel, axis=0))
        return x @ kernel / norm.value, None


class OfParameters(nn.Module):
    """Two such layers, and two more in a lifted loop."""

    @nn.compact
    def __call__(self, x):
        x, _ = Normalised()(x.mean((1, 2)))
        loop = nn.scan(Normalised, {"params": 0, "state": 0}, split_rngs={"params": True}, length=2)
        x, _ = loop()(x, None)
        return nn.Dense(10)(nn.BatchNorm(use_running_average=True)(x))


def test_state_that_is_computed_from_parameters_is_computed_from_the_predicted_ones():
    model = OfParameters()
    variables, _ = ghn_jax.predict_parameters(model, IMAGES, strict=True)
    own: Any = model.init(jax.random.key(0), IMAGES)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, own)
    for name, state in variables["state"].items():
        kernel = variables["params"][name]["kernel"]
        np.testing.assert_array_equal(state["copy"], kernel)
        np.testing.assert_allclose(state["norm"], jnp.linalg.norm(kernel, axis=-2), rtol=1e-5)
        assert not np.allclose(state["norm"], own["state"][name]["norm"])
    noise, own_noise = (tree["state"]["Normalised_0"]["noise"] for tree in (variables, own))
    np.testing.assert_array_equal(noise, own_noise)  # as the model's own, with the same seed
    jax.tree.map(np.testing.assert_array_equal, variables["batch_stats"], own["batch_stats"])


class NNXOfParameters(nnx.Module):
    """Divides by norms that were computed from its kernel when it was made."""

    def __init__(self, rngs: nnx.Rngs):
        self.head = nnx.Linear(3, 10, rngs=rngs)
        self.before = nnx.BatchStat(jnp.linalg.norm(self.head.kernel[...], axis=0))

    def __call__(self, x):
        return self.head(x.mean((1, 2))) / self.before[...]


def test_state_of_an_nnx_model_is_as_it_was():
    """It was initialised when it was made: there is nothing to tell what its state was computed from."""
    model = NNXOfParameters(nnx.Rngs(0))
    filled, _ = ghn_jax.predict_parameters(model, IMAGES, strict=True)
    assert not np.allclose(filled.head.kernel[...], model.head.kernel[...])
    np.testing.assert_array_equal(filled.before[...], model.before[...])
    np.testing.assert_allclose(filled.before[...], jnp.linalg.norm(model.head.kernel[...], axis=0))


class NNXNorm(nnx.Module):
    """A batch norm and a head."""

    def __init__(self, rngs: nnx.Rngs):
        self.bn = nnx.BatchNorm(3, rngs=rngs)
        self.head = nnx.Linear(3, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(self.bn(x).mean((1, 2)))


def test_predictions_share_no_variable():
    model = NNXNorm(nnx.Rngs(0))
    a, _ = ghn_jax.predict_parameters(model, IMAGES)
    b, _ = ghn_jax.predict_parameters(model, IMAGES)
    a(IMAGES + 100)
    for other in (model, b):
        assert a.bn.mean is not other.bn.mean
        np.testing.assert_array_equal(other.bn.mean[...], 0)


def test_works_under_strict_settings():
    model, images = NNXNorm(nnx.Rngs(0)), jax.device_put(np.ones((2, 8, 8, 3), np.float32))
    with (
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
        jax.transfer_guard("disallow"),
    ):
        filled, _ = ghn_jax.predict_parameters(model, images)
        ghn_jax.apply_by_batch(None, filled, images)


class Transformed:
    """What a Haiku transform is."""

    init = apply = staticmethod(lambda *args: None)


class ForeignDtype:
    """An array of another library."""

    shape, dtype = (1, 8, 8, 3), "torch.float32"

    def __array__(self) -> np.ndarray:
        return np.zeros(self.shape)


@pytest.mark.parametrize(
    ("model", "images", "message"),
    [
        (Transformed(), IMAGES, "has no parameters yet: params = model.init"),
        ((Plain(), {}), IMAGES, "give the model alone"),
        (Plain, IMAGES, r"is a class: give a model that is made, such as Plain\(\)"),
        (ghn_jax.Function({}, Plain().apply), IMAGES, r"in this order"),  # pyright: ignore[reportArgumentType]
        (nnx.eval_shape(lambda: NNXNorm(nnx.Rngs(0))), IMAGES, r"is abstract, and its state 'bn\.mean'"),
        (Plain(), (IMAGES, IMAGES), "is a tuple of 2, and a classifier takes one array"),
        (Plain(), ForeignDtype(), "give an array of NumPy or JAX"),
    ],
)
def test_messages(model, images, message):
    with pytest.raises(ghn_jax.UnsupportedModel, match=message):
        ghn_jax.predict_parameters(model, images)


def test_exports_of_any_tree(tmp_path):
    linear = ghn_jax.Function(lambda p, x: x @ p[0] + p[1], [jnp.ones((16, 10)), jnp.ones(10)])
    params, _ = ghn_jax.predict_parameters(linear, jnp.zeros((1, 16)))
    export(params, tmp_path / "list.safetensors", public_names=False)
    assert set(safetensors.numpy.load_file(tmp_path / "list.safetensors")) == {"0", "1"}
    images = jnp.ones((2, 32, 32, 3))
    model = ghn_jax.target("resnet18", 10, 32)
    variables = ghn_jax.fill_running_statistics(model, ghn_jax.predict_parameters(model, images)[0], images)
    export(variables, tmp_path / "torch.safetensors", public_names=True)
    tensors = safetensors.numpy.load_file(tmp_path / "torch.safetensors")
    np.testing.assert_array_equal(tensors["bn1.running_mean"], variables["batch_stats"]["bn1"]["mean"])
    assert tensors["layer1.0.bn1.num_batches_tracked"].shape == ()


def linear(p, x):
    return x.mean((1, 2)) @ p["w"]


def test_a_random_key_among_the_parameters_is_kept():
    params = {"w": jnp.ones((3, 10)), "key": jax.random.key(7)}
    with pytest.warns(UserWarning, match="key is not used"):
        filled, _ = ghn_jax.predict_parameters(ghn_jax.Function(linear, params), IMAGES)
    assert filled["key"] == params["key"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"act": jax.nn.relu}, r"'act', a custom_jvp: give arrays alone"),
        ({"name": "abc"}, r"'name', a str: give arrays alone"),
        ({"empty": jnp.ones((0, 4))}, r"without elements, empty \(0, 4\): leave it out"),
    ],
)
def test_what_is_no_parameter_is_named(params, message):
    with pytest.raises(ghn_jax.UnsupportedModel, match=message):
        ghn_jax.predict_parameters(ghn_jax.Function(linear, params | {"w": jnp.ones((3, 10))}), IMAGES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, r"`seed` \(=-1\) must not be negative"),
        ({"ghn": 5}, r"`ghn` \(a int\) is no GHN"),
        ({"ghn": "ghn2-cifar"}, r"`ghn` \(='ghn2-cifar'\) is unknown: did you mean 'ghn2-cifar10'"),
        ({"headless": True, "logits": "a"}, r"`logits` \(='a'\) has no effect with headless=True"),
        ({"headless": True, "predict_class_layers": False}, "`predict_class_layers` .* no effect"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        ghn_jax.predict_parameters(Plain(), IMAGES, **options)


def test_a_graph_without_classification_layer_under_strict_settings():
    model = ghn_jax.Function(lambda p, x: x @ p["w"] + p["b"], {"w": jnp.ones((3, 4)), "b": jnp.ones(4)})
    with pytest.raises(ghn_jax.UnsupportedModel, match="headless=True"):
        ghn_jax.graph_of(model, IMAGES)
    with jax.numpy_rank_promotion("raise"):
        assert ghn_jax.graph_of(model, IMAGES, headless=True).num_nodes == 3


class PooledLater(nn.Module):
    """Pools, but not while it is initialised."""

    in_python: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3))(x)
        if self.in_python:
            return x if self.is_initializing() else nn.max_pool(x, (2, 2), (2, 2))
        return jnp.where(self.is_initializing(), x, nn.max_pool(x, (3, 3), padding="SAME"))


@pytest.mark.parametrize("in_python", [True, False])
@pytest.mark.parametrize("lifted", [lambda block: block, nn.remat, nn.jit], ids=["plain", "remat", "jit"])
def test_what_a_model_does_when_initialised_does_not_count(lifted, in_python):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(10)(lifted(PooledLater)(in_python)(x).mean((1, 2)))

    graph = ghn_jax.graph_of(Net(), IMAGES)
    assert PRIMITIVES.index("max_pool") in graph.primitives


def test_a_normalised_weight_is_one_of_two_parameters():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(10)(nn.WeightNorm(nn.Conv(4, (3, 3)))(x).mean((1, 2)))

    with pytest.warns(
        UserWarning, match="scale is one of several parameters that make the weight of layer 'Conv_0.kernel'"
    ):
        ghn_jax.predict_parameters(Net(), IMAGES)
