"""Statistics of a batch in place of running statistics, against each framework's own training mode."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ghn_jax

IMAGES = jax.random.normal(jax.random.key(0), (8, 6, 6, 3)) * 3 + 1


def close(a: Any, b: Any) -> None:
    np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=2e-3, atol=2e-4)


class Own(nn.Module):
    """A batch norm of one's own."""

    @nn.compact
    def __call__(self, x, train=False):
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1])
        var = self.variable("batch_stats", "var", jnp.ones, x.shape[-1])
        m, v = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (mean.value, var.value)
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return (x - m) / jnp.sqrt(v + 1e-5) * scale + bias


class Doubling(nn.BatchNorm):
    """A subclass."""

    @nn.compact
    def __call__(self, x):
        return super().__call__(x) * 2


class Net(nn.Module):
    """A convolution, a norm of some kind, a head."""

    kind: str

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(16, (3, 3))(x)
        match self.kind:
            case "own":
                x = Own()(x, train)
            case "subclass":
                x = Doubling(use_running_average=not train)(x)
            case "mask":
                mask = jnp.arange(len(x))[:, None, None, None] < 5
                x = nn.BatchNorm(use_running_average=not train)(x, mask=mask)
            case "axes":
                axes: Any = (2, 3)
                x = nn.BatchNorm(use_running_average=not train, axis=axes)(x)
            case "bfloat16":
                x = nn.BatchNorm(use_running_average=not train, dtype=jnp.bfloat16)(x)
            case "shared":
                norm = nn.BatchNorm(use_running_average=not train, use_scale=False)
                x = norm(nn.relu(norm(norm(x)) + 1.0))
        x = nn.Dropout(0.5, deterministic=not train, rng_collection="other")(x) if self.kind == "own" else x
        return nn.Dense(10)(nn.relu(x).mean((1, 2)))


@pytest.mark.parametrize("kind", ["own", "subclass", "mask", "axes", "bfloat16", "shared"])
def test_linen(kind):
    model = Net(kind)
    variables: Any = model.init(
        {"params": jax.random.key(1), "dropout": jax.random.key(1)}, IMAGES, train=False
    )
    by_batch = ghn_jax.apply_by_batch(model, variables, IMAGES)
    filled = ghn_jax.fill_running_statistics(model, variables, IMAGES)
    if kind == "own":
        trained = without_dropout(variables)
    else:
        trained, _ = model.apply(variables, IMAGES, train=True, mutable=["batch_stats"])  # pyright: ignore
    assert by_batch.dtype == trained.dtype
    tolerance: Any = {"atol": 0.03} if kind == "bfloat16" else {"rtol": 1e-3, "atol": 1e-4}
    np.testing.assert_allclose(by_batch, trained, **tolerance)
    assert jax.tree.structure(filled) == jax.tree.structure(variables)
    if kind not in ("mask", "shared"):
        evaluated: Any = model.apply(filled, IMAGES, train=False)
        np.testing.assert_allclose(evaluated, by_batch, atol=0.03 if kind == "bfloat16" else 1e-4)


def without_dropout(variables: Any) -> Any:
    """The training mode of Net("own"), but for its dropout."""
    p, s = variables["params"], variables["batch_stats"]
    x: Any = nn.Conv(16, (3, 3)).apply({"params": p["Conv_0"]}, IMAGES)
    x = Own().apply({"params": p["Own_0"], "batch_stats": s["Own_0"]}, x, train=True)
    return nn.Dense(10).apply({"params": p["Dense_0"]}, nn.relu(x).mean((1, 2)))


class Loop(nn.Module):
    """Batch norms in a scan, their statistics stacked."""

    @nn.compact
    def __call__(self, x, train: bool = True):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                x = nn.Conv(3, (3, 3), use_bias=False)(x)
                return x + nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.0)(x)), None

        layers = nn.scan(
            nn.remat(Layer),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=3,
        )
        return nn.Dense(10)(layers()(x, None)[0].mean((1, 2)))


def test_loop_over_layers():
    variables = Loop().init(jax.random.key(0), IMAGES)
    trained, updated = Loop().apply(variables, IMAGES, mutable=["batch_stats"])
    close(ghn_jax.apply_by_batch(Loop(), variables, IMAGES), trained)
    filled = ghn_jax.fill_running_statistics(Loop(), variables, IMAGES)
    jax.tree.map(close, filled["batch_stats"], updated["batch_stats"])


class NNXNet(nnx.Module):
    """Says in its call what its batch norm and dropout do."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 16, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(16, momentum=0.7, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x, train=True, mask=None):
        x = nnx.relu(self.norm(self.conv(x), use_running_average=not train, mask=mask))
        return self.head(self.drop(x.mean((1, 2)), deterministic=not train))


def test_nnx():
    model = NNXNet(nnx.Rngs(0))
    twin = nnx.clone(model)
    twin.drop.rate = 0.0
    trained = twin(IMAGES)
    close(ghn_jax.apply_by_batch(None, model, IMAGES), trained)
    np.testing.assert_array_equal(model.norm.mean[...], 0)
    filled = ghn_jax.fill_running_statistics(None, model, IMAGES)
    close(filled(IMAGES, train=False), trained)
    close(filled.norm.mean[...] * 0.3, twin.norm.mean[...])
    assert filled.norm.momentum == 0.7
    assert filled.norm.mean is not model.norm.mean


def test_forward_is_compiled_once():
    compiled = []
    model = Net("subclass")
    variables = model.init(jax.random.key(1), IMAGES, train=False)
    for _ in range(3):
        compiled.append(ghn_jax.apply_by_batch(Net("subclass"), variables, IMAGES))
    inside = jax.jit(lambda v, x: ghn_jax.apply_by_batch(model, v, x))(variables, IMAGES)
    np.testing.assert_allclose(inside, compiled[-1], rtol=1e-5, atol=1e-5)


# -- functions: what other frameworks do, written again ---------------------------------------------------------------


def keras_norm(x, mean, variance, scale, offset):
    """Keras: x * inverse + (offset - mean * inverse)."""
    shape = (1, 1, 1, -1)
    inverse = jax.lax.rsqrt(variance.reshape(shape) + 1e-3) * scale.reshape(shape)
    return x * inverse + (-mean.reshape(shape) * inverse + offset.reshape(shape))


def haiku_norm(x, mean, variance, scale, offset):
    """Haiku: statistics of shape (1, 1, 1, C)."""
    inverse = scale * jax.lax.rsqrt(variance + 1e-5)
    return (x - mean) * inverse + offset


def equinox_norm(x, mean, variance, scale, offset):
    """Equinox: channels first under vmap, a moving average that makes up for its start."""
    counter = jnp.array(3)
    correction = jnp.where(counter == 0, 1, 1 - 0.9**counter)
    mean, variance = mean / correction, variance / correction

    def one(y, m, v, w, b):
        return (y - m) / jnp.sqrt(v + 1e-5) * w + b

    images = jax.vmap(lambda y: jax.vmap(one)(y, mean, variance, scale, offset))(x.transpose(0, 3, 1, 2))
    return images.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("norm", [keras_norm, haiku_norm, equinox_norm])
@pytest.mark.parametrize("held", [True, False])
def test_function(norm, held):
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "kernel": jax.random.normal(keys[0], (3, 3, 3, 16)) / 3,
        "scale": jax.random.uniform(keys[1], (16,)) + 0.5,
        "offset": jax.random.normal(keys[2], (16,)),
        "head": jax.random.normal(keys[3], (16, 10)),
    }
    shape = (1, 1, 1, 16) if norm is haiku_norm else (16,)
    state = {"mean": jnp.zeros(shape), "variance": jnp.ones(shape)}

    def apply(params, state, x, by_batch=False):
        x = jax.lax.conv_general_dilated(
            x, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        if by_batch:
            epsilon = 1e-3 if norm is keras_norm else 1e-5
            x = (x - x.mean((0, 1, 2))) * jax.lax.rsqrt(x.var((0, 1, 2)) + epsilon)
            x = x * params["scale"] + params["offset"]
        else:
            x = jax.jit(norm)(x, state["mean"], state["variance"], params["scale"], params["offset"])
        return jax.nn.relu(x).mean((1, 2)) @ params["head"]

    expected = apply(params, state, IMAGES, by_batch=True)
    if held:
        model = ghn_jax.Function(lambda p, x: apply(p, state, x), params)
        close(ghn_jax.apply_by_batch(model, params, IMAGES), expected)
        with pytest.raises(ghn_jax.UnsupportedModel, match=r"Function\(apply, params, state\)"):
            ghn_jax.fill_running_statistics(model, params, IMAGES)
    else:
        model = ghn_jax.Function(apply, params, state)
        variables, _ = ghn_jax.predict_parameters(model, IMAGES, "ghn2-digits")
        assert set(variables) == {"params", "state"}
        variables = {**variables, "params": params}
        close(ghn_jax.apply_by_batch(model, variables, IMAGES), expected)
        filled = ghn_jax.fill_running_statistics(model, variables, IMAGES)
        close(apply(filled["params"], filled["state"], IMAGES), expected)


def test_what_is_no_norm_is_refused_by_name():
    class Mean(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(10)((x - self.variable("batch_stats", "mean", jnp.zeros, 3).value).mean((1, 2)))

    variables = Mean().init(jax.random.key(0), IMAGES)
    for helper in (ghn_jax.apply_by_batch, ghn_jax.fill_running_statistics):
        with pytest.raises(
            ghn_jax.UnsupportedModel, match=r"'batch_stats\.mean' is used in a way that is no norm"
        ):
            helper(Mean(), variables, IMAGES)
    sliced = {"mean": jnp.zeros(32), "var": jnp.ones(32)}

    def apply(p, x):
        x = (x @ p - sliced["mean"][:10]) / jnp.sqrt(sliced["var"][:10] + 1e-5)
        return x.mean((1, 2))

    model = ghn_jax.Function(apply, jnp.ones((3, 10)))
    with pytest.raises(ghn_jax.UnsupportedModel, match="taken in parts"):
        ghn_jax.apply_by_batch(model, jnp.ones((3, 10)), IMAGES)


def test_normalisation_of_images_stays():
    """As Keras' Normalization does: a known mean and deviation, not those of a batch."""
    mean, variance = jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 5.0, 6.0])

    def apply(p, x):
        return ((x - mean) / jnp.maximum(jnp.sqrt(variance), 1e-7)).mean((1, 2)) @ p

    params = jnp.ones((3, 10))
    close(ghn_jax.apply_by_batch(ghn_jax.Function(apply, params), params, IMAGES), apply(params, IMAGES))


class AfterPool(nn.Module):
    """A norm of a pooled map."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(16, (3, 3))(x)).mean((1, 2))
        return nn.Dense(10)(nn.BatchNorm(not train)(x))


def test_a_norm_right_after_a_pool():
    variables, _ = ghn_jax.predict_parameters(AfterPool(), IMAGES, "ghn2-digits")
    expected, _ = AfterPool().apply(variables, IMAGES, train=True, mutable=["batch_stats"])
    close(ghn_jax.apply_by_batch(AfterPool(), variables, IMAGES), expected)
    filled = ghn_jax.fill_running_statistics(AfterPool(), variables, IMAGES)
    close(AfterPool().apply(filled, IMAGES, train=False), expected)


class AlwaysTraining(nn.Module):
    """A norm that never uses its running statistics."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=False)(nn.Conv(16, (3, 3))(x)))
        return nn.Dense(10)(x.mean((1, 2)))


def test_a_norm_that_is_always_in_training():
    variables, _ = ghn_jax.predict_parameters(AlwaysTraining(), IMAGES, "ghn2-digits")
    expected, _ = AlwaysTraining().apply(variables, IMAGES, mutable=["batch_stats"])
    close(ghn_jax.apply_by_batch(AlwaysTraining(), variables, IMAGES), expected)
    filled = ghn_jax.fill_running_statistics(AlwaysTraining(), variables, IMAGES)
    jax.tree.map(close, filled, variables)
