"""Elementwise arithmetic: norms, biases, positional encodings, sums and gates are all made of it.

A normalisation opens where a map is divided by its deviation, or multiplied with the inverse; the scale and the bias
that may follow belong to the same node.
"""

from collections.abc import Mapping, Sequence

from jax.extend import core

from ghn_jax.tracing.builder import GraphBuilder
from ghn_jax.tracing.contraction import settled
from ghn_jax.tracing.statics import shape_of
from ghn_jax.tracing.values import Activation, Constant, Leaf, Norm, Value, Weight
from ghn_jax.tracing.vectors import add_bias, take
from ghn_jax.tracing.views import View, is_deviation, is_rooted


class StatisticInTree(ValueError):
    """A parameter, its argument, is used as a running variance."""


def arithmetic(builder: GraphBuilder, equation: core.JaxprEqn, operands: Sequence[Value]) -> Value:
    """The result of adding, subtracting, multiplying or dividing, at least one operand being an activation."""
    a, b = operands
    name = equation.primitive.name
    if isinstance(a, Activation) and isinstance(b, Activation):
        return _two_maps(builder, name, a, b)
    x, other = (a, b) if isinstance(a, Activation) else (b, a)
    assert isinstance(x, Activation) and not isinstance(other, Activation)
    builder.met.update(other.statistics.axes)
    if name in ("mul", "div"):
        if _is_deviation(name, other, divides=other is b):
            return _by_running_deviation(builder, x, other)
        views = other.views if isinstance(other, Weight) and x.level == 0 else {}
        for leaf, view in views.items():
            if builder.shape(leaf) and is_deviation(view, name == "div" and other is b, x.centred):
                raise StatisticInTree(leaf)
    elif x.level == 0 or other.statistics.axes:
        x = _centred(settled(builder, x), other)
    if isinstance(other, Constant):
        return x
    if x.level > 0:  # a statistic
        rooted = x.rooted or any(map(is_rooted, other.views.values()))
        return x._replace(folded={**x.folded, **other.views}, rooted=rooted)
    if name in ("mul", "div"):
        return scaled(builder, x, other)
    biased = add_bias(builder, x, other, shape_of(equation.invars[0 if other is a else 1]))
    return biased._replace(centred=name == "sub" and other is b)


def scaled(builder: GraphBuilder, x: Activation, weight: Weight) -> Activation:
    """A map times a parameter: the scale of the norm before, if there is one."""
    if x.norm and take(builder, x.norm, weight, "scale"):
        return _normalized(x.norm)
    builder.leave(weight.views, "is an elementwise scale of a map, which has no node")
    return settled(builder, x).further()


# -- batch norm by running statistics -----------------------------------------------------------------------------


def _is_deviation(name: str, other: Constant | Weight, divides: bool) -> bool:
    """Whether a map is divided by a root of state, or multiplied with the inverse."""
    statistics = other.statistics
    return bool(statistics.roots) and (
        not statistics.inverse if name == "div" and divides else name == "mul" and statistics.inverse
    )


def _by_running_deviation(builder: GraphBuilder, x: Activation, other: Constant | Weight) -> Activation:
    norm = Norm("bn", settled(builder, x).sources, x.features, mean=x.centre, offset=other.statistics.offset)
    if len(other.statistics.roots) == 1:
        (norm.variance,) = other.statistics.roots
    builder.norms.append(norm)
    if isinstance(other, Weight):
        take(builder, norm, other, "scale")
    return _normalized(norm)


def _centred(x: Activation, other: Constant | Weight) -> Activation:
    """A map to which state is added, or from which it is subtracted: perhaps a running mean."""
    leaves = set(other.statistics.axes)
    if x.norm is not None and x.norm.mean is None and x.norm.variance in leaves:
        others = leaves - {x.norm.variance}
        if len(others) == 1:
            (x.norm.mean,) = others
        return x
    if x.norm is None and len(leaves) == 1 and not other.statistics.roots and isinstance(other, Constant):
        return x._replace(centre=next(iter(leaves)))
    return x


# -- norms ----------------------------------------------------------------------------------------------------------


def _open_norm(
    builder: GraphBuilder, x: Activation, primitive: str, leaves: Mapping[Leaf, View | None]
) -> Activation:
    """The map `x` divided by its standard deviation, and multiplied with a scale if there are `leaves`."""
    norm = Norm(primitive, x.sources, x.features)
    if leaves:
        take(builder, norm, Weight(leaves, frozenset()), "scale")
    return _normalized(norm)


def _normalized(norm: Norm) -> Activation:
    sources = frozenset([norm.node]) if norm.node is not None else norm.sources
    return Activation(sources, norm=norm, features=norm.features)


# -- two maps -------------------------------------------------------------------------------------------------------


def _two_maps(builder: GraphBuilder, name: str, a: Activation, b: Activation) -> Activation:
    if a.level != b.level:
        x, statistic = (a, b) if a.level < b.level else (b, a)
        if _belongs_to(statistic, x):
            return _with_statistic(builder, name, x, statistic)
        a, b = x, settled(builder, statistic)
    if a.level and b.level and (a.sources <= b.sources or b.sources <= a.sources):
        return _two_statistics(a, b)
    a, b = settled(builder, a), settled(builder, b)
    sources = a.sources | b.sources
    features = a.features if a.features == b.features else a.features or b.features
    if name in ("add", "add_any") and len(sources) > 1 and a.sources != b.sources:
        return Activation(frozenset([builder.node("sum", sources)]), features=features)
    if name == "mul" and len(sources) > 1:
        pool = builder.pool_before(b.sources, a.sources) or builder.pool_before(a.sources, b.sources)
        if pool is not None:  # squeeze-excitation, whose inner mean is no node
            builder.contract(pool)
            return Activation(frozenset([builder.node("cse", sources)]), features=features)
    return Activation(
        sources,
        features=features,
        experts=a.experts if a.experts == b.experts else None,
        exponential=a.exponential or b.exponential,
        softmax=a.softmax or b.softmax,
        scores=a.scores or b.scores,
    )


def _belongs_to(statistic: Activation, x: Activation) -> bool:
    """Whether a statistic is one of the map `x`, or of what `x` normalises."""
    if statistic.sources <= x.sources:
        return True
    if x.norm is None:
        return False
    pooled = statistic.pool is not None and not x.norm.sources.isdisjoint(statistic.pool.nodes)
    return statistic.sources <= x.norm.sources or pooled


def _with_statistic(builder: GraphBuilder, name: str, x: Activation, statistic: Activation) -> Activation:
    """A map minus its mean, over its deviation, or an exponential over its sum."""
    if name in ("mul", "div") and statistic.rooted:
        primitive = "bn" if statistic.over_batch else "ln"
        return _open_norm(builder, settled(builder, x), primitive, statistic.folded)
    if name in ("add", "sub", "add_any") and x.norm is not None:  # minus the mean, times scale, plus bias
        if statistic.folded and take(builder, x.norm, Weight(statistic.folded, frozenset()), "bias"):
            return _normalized(x.norm)._replace(norm=None)
        return x
    if name == "div" and x.exponential and statistic.exponential:
        return x.further(exponential=False, softmax=True)
    return x.further()


def _two_statistics(a: Activation, b: Activation) -> Activation:
    return a.further(
        sources=a.sources | b.sources,
        folded={**a.folded, **b.folded},
        over_batch=a.over_batch or b.over_batch,
        rooted=a.rooted or b.rooted,
        exponential=a.exponential or b.exponential,
    )
