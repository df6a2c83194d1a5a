"""Predicts the parameters of functions, for tests."""

from typing import Any

import jax
import jax.numpy as jnp

import ghn_jax
from ghn_jax.graphs import PRIMITIVES

IMAGES = jnp.zeros((1, 8, 8, 3))
X = jnp.zeros((1, 16))


def ones(*shape: int) -> jax.Array:
    return jnp.ones(shape)


def predict(apply: Any, params: Any, x: Any = X, **options: Any) -> tuple[Any, ghn_jax.Report]:
    return ghn_jax.predict_parameters(ghn_jax.Function(apply, params), x, "ghn2-digits", **options)


def nodes(report: ghn_jax.Report) -> dict[str | None, tuple[str, Any]]:
    graph = report.graph
    kinds = [PRIMITIVES[i] for i in graph.primitives]
    return dict(zip(graph.names, zip(kinds, graph.shapes, strict=True), strict=True))
