"""What operations that are no nodes do to abstract values: they hand on the nodes that their operands come from."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ghn_jax.graphs.graph import Shape
from ghn_jax.tracing.builder import GraphBuilder, settle
from ghn_jax.tracing.values import Activation, Constant, Value, Weight

ROOTS = frozenset({"sqrt", "rsqrt", "pow"})
"""Primitives that make deviations of variances."""


def constant(name: str, operands: Sequence[Value]) -> Constant:
    """A result that depends on constants alone."""
    known = [value for value in operands if isinstance(value, Constant)]
    return Constant(
        any(value.state for value in known), name in ROOTS or any(value.rooted for value in known)
    )


def settled(builder: GraphBuilder, x: Activation) -> Activation:
    """A feature map: if it is a reduction, what was reduced becomes a pooling node."""
    if x.level == 0:
        return x
    return Activation(frozenset([settle(builder, x.pool)]) if x.pool else x.sources)


def contracted(builder: GraphBuilder, operands: Sequence[Value], name: str) -> Value:
    """The result of an operation that is no node: it hands on the sources of its operands."""
    activations = [value for value in operands if isinstance(value, Activation)]
    leaves = [leaf for value in operands if isinstance(value, Weight) for leaf in value.views]
    builder.leave(leaves, f"is an operand of {name!r}")
    if not activations:
        return Constant()
    level = min(x.level for x in activations)
    sources = frozenset[int]().union(*(x.sources for x in activations if x.level == level))
    for x in activations:
        if x.level > level and not x.sources <= sources:
            sources |= settled(builder, x).sources
    first = next(x for x in activations if x.level == level)
    return Activation(
        sources,
        level,
        first.pool,
        folded={leaf: view for x in activations for leaf, view in x.folded.items()},
        over_batch=any(x.over_batch for x in activations),
        rooted=name in ROOTS or any(x.rooted for x in activations),
        exponential=name in ("exp", "exp2") or any(x.exponential for x in activations),
        softmax=any(x.softmax for x in activations),
        scores=any(x.scores for x in activations),
    )


def shape_of(atom: Any) -> Shape:
    """Shape of a variable or literal of a jaxpr."""
    return tuple(int(size) for size in np.shape(atom.aval))
