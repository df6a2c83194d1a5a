"""Nothing silently wrong in prediction: every parameter is what a node of its size decodes, or is named."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import ghn_jax
from ghn_jax.graphs import PRIMITIVES
from tests.tracing.functions import IMAGES, nodes, ones, predict

# -- which node owns what ------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """A recurrent kernel, whose first use is on zeros."""

    @nn.compact
    def __call__(self, x):
        states: Any = nn.RNN(nn.SimpleCell(16))(x)
        return nn.Dense(10)(states[:, -1])


def test_recurrent_kernel_is_a_kernel():
    variables, report = ghn_jax.predict_parameters(Recurrent(), jnp.zeros((1, 3, 8)), strict=True)
    kernel = variables["params"]["SimpleCell_0"]["h"]["kernel"]
    assert len(np.unique(kernel, axis=0)) == 16
    assert nodes(report)["SimpleCell_0.h.kernel"] == ("conv", (16, 16))


class Shared(nn.Module):
    """A head whose first use does not reach the logits."""

    @nn.compact
    def __call__(self, x):
        head = nn.Dense(10, name="head")
        auxiliary = head(x.mean((1, 2)))
        return head(nn.relu(nn.Conv(3, (3, 3))(x)).mean((1, 2))), auxiliary


def test_an_earlier_dead_use_hides_nothing():
    _, report = ghn_jax.predict_parameters(Shared(), IMAGES, strict=True)
    assert report.output == 0


def joined(p, x):
    bias = jnp.concatenate([p["q_bias"], jnp.zeros(16), p["v_bias"]])
    x = x @ jnp.concatenate([p["q"], p["k"], p["v"]], 1) + bias
    return x @ p["head"]


def test_joined_weights_are_predicted_each():
    params = {
        **{name: ones(16, 16) for name in "qkv"},
        "q_bias": ones(16),
        "v_bias": ones(16),
        "head": ones(48, 10),
    }
    variables, report = predict(joined, params, strict=True)
    assert report.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert nodes(report)["k"] == ("conv", (16, 16))
    assert nodes(report)["v_bias"] == ("bias", (16,))
    assert all(np.abs(leaf - 1).max() > 0 for leaf in jax.tree.leaves(variables))


def attention(p, x):
    """CLIP: one parameter for queries, keys and values, used in slices."""
    x = x.reshape(1, 4, 4)
    parts = zip(jnp.split(p["in_proj_weight"], 3), jnp.split(p["in_proj_bias"], 3), strict=True)
    q, k, v = (x @ weight.T + bias for weight, bias in parts)
    scores = jax.nn.softmax(jnp.einsum("bqc,bkc->bqk", q, k))
    return jnp.einsum("bqk,bkc->bqc", scores, v).mean(1) @ p["head"]


def test_slices_are_layers_of_their_own():
    params = {"in_proj_weight": ones(12, 4), "in_proj_bias": ones(12), "head": ones(4, 10)}
    variables, report = predict(attention, params, strict=True)
    assert nodes(report)["in_proj_weight[4:8]"] == ("conv", (4, 4))
    assert nodes(report)["in_proj_bias[8:12]"] == ("bias", (4,))
    weight = np.split(np.asarray(variables["in_proj_weight"]), 3)
    assert np.abs(weight[0] - weight[2]).max() > 0


def python_loop(p, x):
    for i in range(3):
        x = jax.nn.relu(x @ p["w"][i] + p["b"][i])
    return x @ p["head"]


def fori_loop(p, x):
    x = jax.lax.fori_loop(0, 3, lambda i, x: jax.nn.relu(x @ p["w"][i] + p["b"][i]), x)
    return x @ p["head"]


def scan(p, x):
    x, _ = jax.lax.scan(lambda x, layer: (jax.nn.relu(x @ layer[0] + layer[1]), None), x, (p["w"], p["b"]))
    return x @ p["head"]


@pytest.mark.parametrize("loop", [python_loop, fori_loop, scan])
def test_loops_over_stacked_parameters(loop):
    variables, report = predict(
        loop, {"w": ones(3, 16, 16), "b": ones(3, 16), "head": ones(16, 10)}, strict=True
    )
    assert nodes(report)["w[1]"] == ("conv", (16, 16))
    assert nodes(report)["b[2]"] == ("bias", (16,))
    assert np.abs(variables["w"][0] - variables["w"][1]).max() > 0


def test_a_part_that_no_layer_uses_is_named():
    with pytest.warns(UserWarning, match=r"w is used in slices, and no layer uses 160 of its 320 elements"):
        variables, _ = predict(lambda p, x: x @ p["w"][:, :10], {"w": ones(16, 20)})
    np.testing.assert_array_equal(variables["w"][:, 10:], 1)
    with pytest.warns(UserWarning, match="w is used in slices that overlap"):
        predict(lambda p, x: x @ p["w"][:, :10] + x @ p["w"][:, 5:15], {"w": ones(16, 15)})


def test_a_clamped_kernel_is_predicted():
    predict(lambda p, x: x @ jax.lax.clamp(-1.0, p["w"], 1.0), {"w": ones(16, 10)}, strict=True)


def test_a_mask_is_no_pool():
    def apply(p, x):
        x = x.reshape(1, 4, 4) @ p["w"]
        x = jnp.where((jnp.abs(x).sum(-1) > 1)[..., None], x @ p["v"], 0)
        return x.mean(1) @ p["head"]

    _, report = predict(apply, {"w": ones(4, 16), "v": ones(16, 16), "head": ones(16, 10)}, strict=True)
    assert [PRIMITIVES[i] for i in report.graph.primitives] == ["input", "conv", "conv", "glob_avg", "conv"]


def test_a_parameter_of_another_output_is_said_to_be_one():
    def apply(p, x):
        return {"logits": x @ p["w"], "auxiliary": x @ p["v"]}

    with pytest.warns(UserWarning, match="v reaches another output, not the logits"):
        predict(apply, {"w": ones(16, 10), "v": ones(16, 10)})


# -- functions of parameters -----------------------------------------------------------------------------------------


def test_standardised_kernel_is_predicted():
    def apply(p, x):
        kernel = (p["k"] - p["k"].mean(0)) / jnp.sqrt(p["k"].var(0) + 1e-5)
        return jax.nn.relu(x @ kernel) @ (p["head"] / jnp.linalg.norm(p["head"]))

    predict(apply, {"k": ones(16, 24), "head": ones(24, 10)}, strict=True)


@pytest.mark.parametrize(
    "function",
    [lambda s: 1 + s, jnp.exp, jax.nn.softplus, lambda s: 2.0 * s - 1, lambda s: jnp.log1p(jnp.exp(s))],
)
def test_the_scale_that_a_norm_sees_is_what_was_predicted(function):
    def apply(p, x, function=function):
        x = x @ p["w"]
        x = (x - x.mean(1, keepdims=True)) * jax.lax.rsqrt(x.var(1, keepdims=True) + 1e-6)
        return (x * function(p["scale"])) @ p["head"]

    params = {"w": ones(16, 24), "scale": ones(24), "head": ones(24, 10)}
    variables, _ = predict(apply, params, strict=True)
    plain, _ = predict(lambda p, x: apply(p, x, lambda s: s), params, strict=True)
    np.testing.assert_allclose(function(variables["scale"]), plain["scale"], rtol=1e-5)
    with pytest.warns(UserWarning, match="scale is the scale of a layer after tanh, which cannot be undone"):
        predict(lambda p, x: apply(p, x, jnp.tanh), params)


def test_positions_after_a_norm_and_with_channels_first():
    def apply(p, x):
        x = jax.lax.conv_general_dilated(x.transpose(0, 3, 1, 2), p["k"], (2, 2), "VALID")
        x = x + p["first"]
        x = x.reshape(1, 8, 16).transpose(0, 2, 1)
        x = (x - x.mean(2, keepdims=True)) * jax.lax.rsqrt(x.var(2, keepdims=True) + 1e-6)
        x = x + p["second"]
        return jax.nn.relu(x).mean(1) @ p["head"]

    params = {"k": ones(8, 3, 2, 2), "first": ones(1, 8, 4, 4), "second": ones(1, 16, 8), "head": ones(8, 10)}
    variables, report = predict(apply, params, IMAGES, strict=True)
    for name in ("first", "second"):
        assert nodes(report)[name] == ("pos_enc", (1, 8, 4, 4))
    assert len(np.unique(variables["first"][0].reshape(8, 16), axis=0)) == 8


def with_positions(look_up):
    def apply(p, x):
        tokens = x.reshape(1, 16, 12) @ p["embed"] + look_up(p["table"])
        return tokens.mean(1) @ p["head"]

    return apply, {"embed": ones(12, 8), "table": ones(16, 8), "head": ones(8, 10)}


def test_positions_looked_up_in_a_table():
    outside = jnp.arange(16)[None]
    expected, _ = predict(*with_positions(lambda table: table), IMAGES)
    for look_up in (lambda table: table[outside], lambda table: jnp.take(table, jnp.arange(16), axis=0)):
        filled, report = predict(*with_positions(look_up), IMAGES, strict=True)
        assert nodes(report)["table"] == ("pos_enc", (1, 8, 4, 4))
        np.testing.assert_array_equal(filled["table"], expected["table"])


def test_positions_in_another_order_are_named():
    with pytest.warns(UserWarning, match="table is a positional encoding, but in an order"):
        predict(*with_positions(lambda table: table[jnp.arange(16)[::-1] ** 2 % 16]), IMAGES)


@pytest.mark.parametrize("rows", [((1, 0), (0, 0)), ((0, 1), (0, 0))])
def test_positions_with_zeros_for_the_class_token(rows):
    def apply(p, x):
        patches, token = x.reshape(1, 16, 12) @ p["embed"], jnp.zeros((1, 1, 8))
        tokens = [token, patches] if rows[0][0] else [patches, token]
        return (jnp.concatenate(tokens, 1) + jnp.pad(p["table"], rows)).mean(1) @ p["head"]

    filled, _ = predict(apply, with_positions(None)[1], IMAGES, strict=True)
    expected, _ = predict(*with_positions(lambda table: table), IMAGES)
    np.testing.assert_array_equal(filled["table"], expected["table"])


def test_positions_of_each_head():
    def by(table):
        def apply(p, x):
            patches, token = x.reshape(1, 16, 12) @ p["embed"], jnp.broadcast_to(p["token"], (1, 1, 8))
            return (jnp.concatenate([token, patches], 1) + table(p["table"])).mean(1) @ p["head"]

        return apply

    params = {"embed": ones(12, 8), "token": ones(1, 1, 8), "head": ones(8, 10)}
    with pytest.warns(UserWarning, match="token is concatenated"):
        by_head, _ = predict(
            by(lambda t: t.swapaxes(0, 1).reshape(17, 8)), params | {"table": ones(2, 17, 4)}, IMAGES
        )
        expected, _ = predict(by(lambda t: t), params | {"table": ones(17, 8)}, IMAGES)
    joined = np.swapaxes(by_head["table"], 0, 1).reshape(17, 8)
    np.testing.assert_array_equal(joined, expected["table"])
    assert 0 < np.std(joined[0]) < 0.05  # the class token's row is drawn


def test_a_class_token_with_a_shortcut_is_no_bias():
    def apply(p, x):
        patches = x.reshape(1, 16, 12) @ p["embed"]
        token = jnp.broadcast_to(p["token"], (1, 1, 16))
        attended = jnp.concatenate([token, patches], 1).mean(1, keepdims=True) @ p["layer"]
        return (token + attended)[:, 0] @ p["head"]

    params = {"embed": ones(12, 16), "token": ones(1, 1, 16), "layer": ones(16, 16), "head": ones(16, 10)}
    with pytest.warns(UserWarning, match="1 parameter keeps .* token is concatenated with activations"):
        _, report = predict(apply, params, IMAGES)
    assert "bias" not in {kind for kind, _ in nodes(report).values()}


# -- what keeps its own values -----------------------------------------------------------------------------------------


def fourier(x, a):
    return jnp.fft.ifft(jnp.fft.fft(x, norm="ortho") * a).real


MASK = jnp.arange(16.0)


@pytest.mark.parametrize(
    ("use", "leaf", "reason"),
    [
        (lambda p, x: jnp.einsum("bc,c->bc", x, p["a"]), ones(16), "a is an elementwise scale"),
        (lambda p, x: jnp.einsum("bc,d->bcd", x, p["a"]).mean(2), ones(3), "a is an elementwise scale"),
        (
            lambda p, x: jnp.fft.ifft(jnp.fft.fft(x, norm="ortho") * p["a"]).real,
            jnp.ones(16, jnp.complex64),
            "a is an el",
        ),
        (lambda p, x: x + p["a"], jnp.arange(16), "a has int32 numbers"),
        (lambda p, x: x @ p["a"].astype(float), jnp.eye(16, dtype=int), "a has int32 numbers"),
        (lambda p, x: x * (jnp.linalg.norm(x) > 1.0) * p["a"], ones(16), "a is an elementwise scale"),
        (
            lambda p, x: x * jax.nn.sigmoid(jnp.sqrt(x.var(1, keepdims=True))) * p["a"],
            ones(16),
            "a is an elem",
        ),
        (lambda p, x: x * jnp.sqrt(MASK) * p["a"], ones(16), "a is an elementwise scale"),
        (lambda p, x: x * jnp.sqrt(p["a"]), ones(16), "a is an elementwise scale"),
        (lambda p, x: x / jnp.sqrt(p["a"]), ones(1), "a is an elementwise scale"),
        (lambda p, x: x * p["a"] ** 3.0, ones(16), "a is an elementwise scale"),
        (lambda p, x: x * 10.0 ** p["a"], ones(16), "a is an elementwise scale"),
        (lambda p, x: x @ jnp.tile(p["a"], (2, 1)), ones(8, 16), "a is "),
    ],
)
def test_others_are_named_and_kept(use, leaf, reason):
    def apply(p, x):
        return use(p, jax.nn.relu(x @ p["w"])) @ p["head"]

    params = {"w": ones(16, 16), "a": leaf, "head": ones(16, 10)}
    with pytest.warns(UserWarning, match=f"1 parameter keeps its own initialisation: {reason}"):
        variables, _ = predict(apply, params)
    np.testing.assert_array_equal(variables["a"], leaf)
    assert variables["a"].dtype == leaf.dtype
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(variables))


def test_running_statistics_in_the_tree_are_refused_by_name():
    model = nn.Sequential(
        [nn.Conv(8, (3, 3)), nn.BatchNorm(use_running_average=True), lambda x: x.mean((1, 2)), nn.Dense(10)]
    )
    variables = model.init(jax.random.key(0), IMAGES)
    with pytest.raises(
        ghn_jax.UnsupportedModel, match=r"'batch_stats\.layers_1\.var' is used as a running variance"
    ):
        predict(model.apply, variables, IMAGES)


@pytest.mark.parametrize(
    "use",
    [
        lambda x, v: x / jnp.sqrt(v + 1e-5),
        lambda x, v: x * (1 / jnp.sqrt(v + 1e-5)),
        lambda x, v: x * (v + 1e-5) ** -0.5,
        lambda x, v: x / (jnp.sqrt(v) + 1e-5),
        lambda x, v: (x - v) / jnp.sqrt(v),
        lambda x, v: x * (jnp.arange(16.0) * jax.lax.rsqrt(v + 1e-5)),
    ],
)
def test_a_running_variance_is_divided_by(use):
    params = {"w": ones(16, 16), "v": ones(16), "head": ones(16, 10)}
    with pytest.raises(ghn_jax.UnsupportedModel, match="'v' is used as a running variance"):
        predict(lambda p, x: use(x @ p["w"], p["v"]) @ p["head"], params)


# -- layers under shard_map ------------------------------------------------------------------------------------------


def sharded(mesh: Any, weight: P, out: P) -> Any:
    def apply(p, x):
        layer = jax.shard_map(
            lambda w, x: jax.nn.relu(x @ w), mesh=mesh, in_specs=(weight, P()), out_specs=out
        )
        return layer(p["w"], x) @ p["head"]

    return apply


SHARDED = {"w": jnp.zeros((16, 16)), "head": jnp.zeros((16, 10))}


def test_a_layer_whose_parameters_are_whole_on_each_device_is_walked():
    apply = sharded(jax.make_mesh((1,), ("d",)), P(), P())
    _, report = predict(apply, SHARDED, strict=True)
    _, expected = predict(lambda p, x: jax.nn.relu(x @ p["w"]) @ p["head"], SHARDED, strict=True)
    assert nodes(report) == nodes(expected)


def test_a_layer_whose_parameters_are_cut_is_refused():
    apply = sharded(jax.sharding.AbstractMesh((2,), ("d",)), P(None, "d"), P(None, "d"))
    with pytest.raises(ValueError, match="shard_map"):
        predict(apply, SHARDED)
