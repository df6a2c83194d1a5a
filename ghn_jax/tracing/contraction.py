"""What operations that are no nodes do to abstract values: they hand on the nodes that their operands come from."""

from collections.abc import Sequence

import numpy as np
from jax.extend import core

from ghn_jax.tracing.builder import GraphBuilder, settle
from ghn_jax.tracing.statics import ROOTS
from ghn_jax.tracing.values import Activation, Constant, Value, Weight

_ELEMENTWISE = frozenset({"max", "min", "clamp", "select_n", "erf"})


def settled(builder: GraphBuilder, x: Activation) -> Activation:
    """A feature map: if it is a reduction, what was reduced becomes a pooling node."""
    if x.level == 0:
        return x
    if x.pool is None:
        return Activation(x.sources)
    nodes = settle(builder, x.pool)
    return Activation(frozenset(nodes), experts=(x.experts[0], nodes) if x.experts else None)


def contracted(builder: GraphBuilder, operands: Sequence[Value], name: str, is_truth: bool = False) -> Value:
    """The result of an operation that is no node: it hands on the sources of its operands.

    Args:
      name: the operation.
      is_truth: whether the result is true or false: of a mask, nothing is known but where it comes from.
    """
    if name == "select_n" and any(isinstance(value, Activation) for value in operands[1:]):
        operands = operands[1:]  # which one is taken says nothing of what it is
    activations = [value for value in operands if isinstance(value, Activation)]
    leaves = [leaf for value in operands if isinstance(value, Weight) for leaf in value.views]
    builder.leave(leaves, f"is an operand of {name!r}, which is no layer")
    if not activations:
        return Constant()
    level = min(x.level for x in activations)
    sources = frozenset[int]().union(*(x.sources for x in activations if x.level == level))
    for x in activations:
        if x.level > level and not x.sources <= sources:
            sources |= settled(builder, x).sources
    first = next(x for x in activations if x.level == level)
    if is_truth:
        return Activation(sources, level, first.pool)
    return Activation(
        sources,
        level,
        first.pool,
        features=first.features if name in _ELEMENTWISE else None,
        experts=first.experts if name in _ELEMENTWISE and len(activations) == 1 else None,
        folded={leaf: view for x in activations for leaf, view in x.folded.items()},
        over_batch=any(x.over_batch for x in activations),
        rooted=name in ROOTS or any(x.rooted for x in activations),
        exponential=name in ("exp", "exp2") or any(x.exponential for x in activations),
        softmax=any(x.softmax for x in activations),
        scores=any(x.scores for x in activations),
    )


def makes_truth(equation: core.JaxprEqn) -> bool:
    """Whether the results of an equation are true or false."""
    return getattr(equation.outvars[0].aval, "dtype", None) == np.bool_
