"""Layers that lie on top of each other in one parameter: ensembles, and loops of all kinds, find the same graph."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ghn_jax
from ghn_jax.graphs import PRIMITIVES

IMAGES = jnp.zeros((1, 8, 8, 3))
WIDE = jnp.zeros((1, 16))


def predict(apply: Any, params: Any, x: Any = WIDE, **options: Any) -> tuple[Any, ghn_jax.Report]:
    return ghn_jax.predict_parameters(ghn_jax.Function(apply, params), x, "ghn2-digits", **options)


def kinds(report: ghn_jax.Report) -> list[tuple[str, Any]]:
    graph = report.graph
    return [(PRIMITIVES[kind], shape) for kind, shape in zip(graph.primitives, graph.shapes, strict=True)]


def assert_same(found: tuple[Any, ghn_jax.Report], expected: tuple[Any, ghn_jax.Report]) -> None:
    assert kinds(found[1]) == kinds(expected[1])
    jax.tree.map(np.testing.assert_array_equal, found[0], expected[0])


# -- rows that a loop makes ------------------------------------------------------------------------------------------

HEADS = {"stem": jnp.ones((16, 8)), "w": jnp.ones((4, 8, 10)), "b": jnp.ones((4, 10))}


def test_members_of_an_ensemble_in_a_loop():
    def by(members):
        return lambda p, x: members(jax.nn.relu(x @ p["stem"]), p["w"], p["b"]).mean(0)

    loop = by(lambda x, *heads: jax.lax.map(lambda head: x @ head[0] + head[1], heads))
    counted = by(lambda x, w, b: jax.lax.map(lambda i: x @ w[i] + b[i], jnp.arange(4)))
    written_out = by(lambda x, w, b: jnp.stack([x @ w[i] + b[i] for i in range(4)]))
    expected = predict(written_out, HEADS, strict=True)
    assert len({head.tobytes() for head in np.asarray(expected[0]["w"])}) == 4
    for members in (loop, counted):
        found = predict(members, HEADS, strict=True)
        assert sorted(map(str, kinds(found[1]))) == sorted(map(str, kinds(expected[1])))
        assert len({head.tobytes() for head in np.asarray(found[0]["w"])}) == 4


def test_all_layers_of_a_loop_count():
    def looped(p, x):
        def layer(x, w):
            x = jax.nn.relu(x @ w)
            return x, x

        _, maps = jax.lax.scan(layer, x, p["w"])
        return jnp.moveaxis(maps, 0, 1).reshape(1, -1) @ p["head"]

    def written_out(p, x):
        maps = []
        for w in p["w"]:
            maps.append(x := jax.nn.relu(x @ w))
        return jnp.stack(maps, 1).reshape(1, -1) @ p["head"]

    params = {"w": jnp.ones((3, 16, 16)), "head": jnp.ones((48, 10))}
    found, expected = predict(looped, params, strict=True), predict(written_out, params, strict=True)
    edges = [set(zip(r.graph.senders, r.graph.receivers, strict=True)) for _, r in (found, expected)]
    assert len(edges[0]) == 6  # three in a row, and from each to the last
    assert len(edges[1]) >= 6


def test_weights_that_a_loop_makes():
    def by(standardised):
        def apply(p, x):
            kernels = standardised(p["w"])
            for i in range(3):
                x = jax.nn.relu(x @ kernels[i])
            return x @ p["head"]

        return apply

    def one(w):
        return (w - w.mean()) / w.std()

    params = {"w": jnp.ones((3, 16, 16)), "head": jnp.ones((16, 10))}
    found = predict(by(lambda w: jax.lax.map(one, w)), params, strict=True)
    assert_same(found, predict(by(lambda w: [one(part) for part in w]), params, strict=True))


def test_functions_of_joined_weights_are_undone():
    def apply(p, x):
        return jax.nn.relu(x @ jnp.concatenate([2.0 * p["a"], p["b"]], 1)) @ p["head"]

    params = {"a": jnp.ones((16, 8)), "b": jnp.ones((16, 8)), "head": jnp.ones((16, 10))}
    plain, _ = predict(lambda p, x: apply(p | {"a": p["a"] / 2.0}, x), params, strict=True)
    doubled, _ = predict(apply, params, strict=True)
    np.testing.assert_allclose(2.0 * doubled["a"], plain["a"], rtol=1e-6)


def test_numbers_that_a_loop_makes():
    def apply(p, x):
        _, places = jax.lax.scan(lambda i, _: (i + 1, i), 0, None, length=3)
        for i in jnp.asarray(places):
            x = jax.nn.relu(x @ p["w"][i])
        return x @ p["head"]

    _, report = predict(apply, {"w": jnp.ones((3, 16, 16)), "head": jnp.ones((16, 10))}, strict=True)
    assert [shape for kind, shape in kinds(report) if kind == "conv"] == [(16, 16)] * 3 + [(10, 16)]


@pytest.mark.parametrize("batch", [1, 3])
def test_axes_through_a_loop_over_images(batch):
    def by(mapped):
        def apply(p, x):
            tokens = mapped(lambda image: image.reshape(-1, 12) @ p["embed"], x)
            return (tokens + p["positions"]).mean(1) @ p["head"]

        return apply

    params = {"embed": jnp.ones((12, 64)), "positions": jnp.ones((16, 64)), "head": jnp.ones((64, 10))}
    images = jnp.zeros((batch, 8, 8, 3))
    found = predict(by(jax.lax.map), params, images, strict=True)
    assert ("pos_enc", (1, 64, 4, 4)) in kinds(found[1])
    assert_same(found, predict(by(lambda f, x: jax.vmap(f)(x)), params, IMAGES, strict=True))


# -- Linen: parameters that are not what their initialiser returned ----------------------------------------------------


class Member(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.GroupNorm(4)(nn.Conv(8, (3, 3))(x)))
        return nn.Dense(10)(x.mean((1, 2)))


class Ensemble(nn.Module):
    different: bool

    @nn.compact
    def __call__(self, x):
        members: Any = nn.vmap(
            Member,
            variable_axes={"params": 0},
            split_rngs={"params": self.different},
            in_axes=None,  # pyright: ignore[reportArgumentType]
            axis_size=3,
        )
        return members()(x).mean(0)


class OneBank(nn.Module):
    @nn.compact
    def __call__(self, x):
        bank = np.ones((3, 3, 3, 3), np.float32)
        for _ in range(2):
            x = nn.relu(nn.Conv(3, (3, 3), kernel_init=lambda *_: jnp.asarray(bank))(x))
        return nn.Dense(10)(x.mean((1, 2)))


class Copied(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x.mean((1, 2))
        first: Any = self.param("first", nn.initializers.lecun_normal(), (3, 3))
        second: Any = self.param("second", lambda _: first)
        return nn.Dense(10)(nn.relu(x @ first) @ second)


@pytest.mark.parametrize("model", [Ensemble(True), Ensemble(False), OneBank(), Copied()])
def test_linen_as_a_function(model):
    variables, report = ghn_jax.predict_parameters(model, IMAGES, "ghn2-digits", strict=True)
    params = model.init(jax.random.key(0), IMAGES)["params"]
    expected = predict(lambda p, x: model.apply({"params": p}, x), params, IMAGES, strict=True)
    assert_same((variables["params"], report), expected)


def test_a_scalar_is_named_as_what_it_is():
    model = nn.Sequential([lambda x: x.mean((1, 2)), nn.Dense(8), nn.PReLU(), nn.Dense(10)])
    with pytest.warns(UserWarning, match="negative_slope is an elementwise scale of a map"):
        variables, _ = ghn_jax.predict_parameters(model, IMAGES, "ghn2-digits")
    assert variables["params"]["layers_2"]["negative_slope"] == np.float32(0.01)
