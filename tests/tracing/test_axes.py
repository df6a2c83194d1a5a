"""In which order axes are read, and which of them are layers side by side: neither by chance nor by batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ghn_jax
from tests.tracing.functions import IMAGES, nodes, ones, predict


@pytest.mark.parametrize("shared", [True, False])
def test_mapped_layers_differ(shared):
    def apply(p, x):
        x = jax.vmap(lambda x, w, b: x @ w + b, in_axes=(None if shared else 0, 0, 0))(
            x if shared else jnp.stack([x] * 3), p["w"], p["b"]
        )
        return jax.nn.relu(x).mean(0) @ p["head"]

    params = {"w": ones(3, 16, 64), "b": ones(3, 64), "head": ones(64, 10)}
    variables, report = predict(apply, params, strict=True)
    for name, kind in (("w", "conv"), ("b", "bias")):
        assert [value[0] for key, value in nodes(report).items() if key and key.startswith(name)] == [
            kind
        ] * 3
        assert np.abs(variables[name][0] - variables[name][1]).max() > 0


def test_mapped_convolutions_differ():
    def convolve(x, k):
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def apply(p, x):
        return jax.vmap(convolve, in_axes=(None, 0))(x, p["k"]).mean((0, 2, 3)) @ p["head"]

    variables, _ = predict(apply, {"k": ones(3, 3, 3, 3, 64), "head": ones(64, 10)}, IMAGES, strict=True)
    assert np.abs(variables["k"][0] - variables["k"][1]).max() > 0


def test_mapped_network_is_its_members_side_by_side():
    def convolve(x, k):
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def member(p, x):
        x = jax.nn.relu(convolve(x, p["k1"]) + p["b1"])
        x = jax.nn.gelu(convolve(x, p["k2"]))
        return jax.nn.relu(x.mean((1, 2)) @ p["w1"] + p["b2"]) @ p["w2"]

    shapes = {
        "k1": (3, 3, 3, 16),
        "b1": (16,),
        "k2": (3, 3, 16, 24),
        "w1": (24, 32),
        "b2": (32,),
        "w2": (32, 10),
    }
    params = {name: ones(2, *shape) for name, shape in shapes.items()}

    def mapped(p, x):
        return jax.vmap(member, (0, None))(p, x).mean(0)

    def written_out(p, x):
        return jnp.stack([member(jax.tree.map(lambda leaf, i=i: leaf[i], p), x) for i in range(2)]).mean(0)

    (found, report), (expected, other) = (
        predict(f, params, IMAGES, strict=True) for f in (mapped, written_out)
    )
    assert nodes(report).keys() - {None} == nodes(other).keys() - {None}
    for name, value in expected.items():
        assert np.abs(value[0] - value[1]).max() > 0, name
    np.testing.assert_array_equal(found["k1"], expected["k1"])
    names = report.graph.names
    before = {
        names[to]: names[at] for at, to in zip(report.graph.senders, report.graph.receivers, strict=True)
    }
    for i in range(2):
        assert before[f"k2[{i}]"] == f"b1[{i}]"
        assert before[f"b1[{i}]"] == f"k1[{i}]"
        assert before[f"w2[{i}]"] == f"b2[{i}]"


def test_order_in_which_a_reshape_reads_the_axes():
    fortran, plain = ones(2, 8, 20), ones(16, 20)

    def by(kernel):
        return lambda p, x: jax.nn.relu(x @ kernel(p["w"])) @ p["head"]

    found, _ = predict(by(lambda w: w.reshape((16, 20), order="F")), {"w": fortran, "head": ones(20, 10)})
    expected, _ = predict(by(lambda w: w), {"w": plain, "head": ones(20, 10)})
    np.testing.assert_array_equal(found["w"].reshape((16, 20), order="F"), expected["w"])


@pytest.mark.parametrize("axes", [((2, 3), (0, 1)), ((3, 2), (1, 0))])
def test_contracted_axes_are_read_in_the_order_of_the_input(axes):
    def two(p, x):
        x = jax.nn.relu(x @ p["w"]).reshape(1, 4, 4, 8)
        return jax.lax.dot_general(x, p["v"], (axes, ((), ()))).mean(1)

    def flat(p, x):
        return (jax.nn.relu(x @ p["w"]).reshape(1, 4, 32) @ p["v"]).mean(1)

    found, _ = predict(two, {"w": ones(16, 128), "v": ones(4, 8, 10)})
    expected, _ = predict(flat, {"w": ones(16, 128), "v": ones(32, 10)})
    np.testing.assert_array_equal(found["v"].reshape(32, 10), expected["v"])


class LearnedQuery(nn.Module):
    """Attention pooling by a token that is tiled over the batch."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(16, (2, 2), (2, 2))(x).reshape(len(x), -1, 16)
        query = jnp.tile(self.param("query", nn.initializers.normal(), (1, 1, 16)), (len(x), 1, 1))
        return nn.Dense(10)(nn.MultiHeadDotProductAttention(4)(query, x)[:, 0])


def test_a_query_tiled_over_the_batch_is_no_layer_of_an_image():
    found = []
    for size in (1, 2, 8):
        with pytest.warns(UserWarning, match="makes a learned query"):
            found.append(
                ghn_jax.predict_parameters(LearnedQuery(), jnp.zeros((size, 8, 8, 3)), "ghn2-digits")
            )
    for variables, report in found:
        assert sorted(name.rpartition("_0.")[2] for name in report.unassigned) == [
            "query",
            "query.bias",
            "query.kernel",
        ]
        assert report.graph.num_nodes == found[0][1].graph.num_nodes
        jax.tree.map(np.testing.assert_array_equal, variables, found[0][0])
