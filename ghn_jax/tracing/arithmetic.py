"""Elementwise arithmetic: norms, biases, positional encodings, sums and gates are all made of it.

A normalisation opens where a map is divided by its deviation, or multiplied with the inverse; the scale and the bias
that may follow belong to the same node.
"""

import math
from collections.abc import Mapping, Sequence

from jax.extend import core

from ghn_jax.graphs.graph import Shape
from ghn_jax.tracing.builder import GraphBuilder
from ghn_jax.tracing.contraction import settled, shape_of
from ghn_jax.tracing.values import Activation, Constant, Leaf, Norm, Step, Value, View, Weight


def arithmetic(builder: GraphBuilder, equation: core.JaxprEqn, operands: Sequence[Value]) -> Value:
    """The result of adding, subtracting, multiplying or dividing, at least one operand being an activation."""
    a, b = operands
    name = equation.primitive.name
    if isinstance(a, Activation) and isinstance(b, Activation):
        return _two_maps(builder, name, a, b)
    x, other = (a, b) if isinstance(a, Activation) else (b, a)
    assert isinstance(x, Activation)
    factor = name in ("mul", "div")
    if isinstance(other, Constant):
        if factor and other.rooted and other.state:
            return _open_norm(builder, settled(builder, x), "bn", {})
        return x._replace(features=None)
    assert isinstance(other, Weight)
    if factor and other.rooted:
        return _open_norm(builder, settled(builder, x), "bn", other.views)
    if x.level > 0:  # a statistic
        return x._replace(folded={**x.folded, **other.views}, rooted=x.rooted or other.rooted)
    if factor:
        return _scale(builder, x, other)
    return _bias(builder, x, other, equation, place=0 if other is a else 1)


def _scale(builder: GraphBuilder, x: Activation, weight: Weight) -> Value:
    if x.norm and _take(builder, x.norm, weight.views, "scale"):
        return _normalized(x.norm)
    builder.leave(weight.views, "is an elementwise scale")
    return x._replace(features=None, norm=None)


def _bias(builder: GraphBuilder, x: Activation, weight: Weight, equation: core.JaxprEqn, place: int) -> Value:
    if x.norm and _take(builder, x.norm, weight.views, "bias"):
        return _normalized(x.norm)._replace(norm=None)
    if x.scores and not x.softmax:
        builder.leave(weight.views, "is a bias of attention scores")
        return x
    new = [leaf for leaf in weight.views if not builder.is_owned(leaf)] or list(weight.views)
    if len(new) > 1:
        builder.leave(new, "is added together with other parameters")
        return x._replace(features=None, norm=None)
    (leaf,) = new
    shape = shape_of(equation.invars[place])
    if len(weight.axes) <= 1 or (x.features is not None and weight.axes <= x.features):
        size = (math.prod(shape[axis] for axis in weight.axes),)
        node = builder.node("bias", x.sources, size)
        builder.own(leaf, node, "bias", size)
        return Activation(frozenset([node]))
    form = _position_form(shape, weight.axes, weight.views[leaf])
    if form is None:
        builder.leave(new, "is a positional encoding, but of no square map")
        return x._replace(features=None, norm=None)
    public, view = form
    position = builder.node("pos_enc", (), public)
    builder.own(leaf, position, "weight", public, view)
    return Activation(frozenset([builder.node("sum", x.sources | {position})]))


_CLASS_TOKENS = 2
"""Tokens without a place that may come before the others: for the class, and to be distilled."""


def _position_form(shape: Shape, axes: frozenset[int], view: View | None) -> tuple[Shape, View] | None:
    """Shape (1, C, H, W) of a positional encoding (..., H, W, C) or (..., H W, C), and the view that leads there.

    Of (..., 1 + H W, C), as with a class token, the first row is left out.
    """
    sizes = [shape[axis] for axis in sorted(axes)]
    if view is None or len(sizes) not in (2, 3):
        return None
    before: View = ()
    if len(sizes) == 2:
        side = math.isqrt(sizes[0])
        extra = sizes[0] - side * side
        if extra > _CLASS_TOKENS:
            return None
        if extra:
            before = (Step("reshape", tuple(sizes)), Step("drop", (extra,)))
        sizes = [side, side, sizes[1]]
    height, width, channels = sizes
    public = (1, channels, height, width)
    steps = (
        *before,
        Step("reshape", (height, width, channels)),
        Step("transpose", (2, 0, 1)),
        Step("reshape", public),
    )
    return public, (*view, *steps)


def _open_norm(
    builder: GraphBuilder, x: Activation, primitive: str, leaves: Mapping[Leaf, View | None]
) -> Activation:
    """The map `x` divided by its standard deviation, and multiplied with a scale if there are `leaves`."""
    norm = Norm(primitive, x.sources)
    if leaves:
        _take(builder, norm, leaves, "scale")
    return _normalized(norm)


def _normalized(norm: Norm) -> Activation:
    return Activation(frozenset([norm.node]) if norm.node is not None else norm.sources, norm=norm)


def _take(builder: GraphBuilder, norm: Norm, leaves: Mapping[Leaf, View | None], role: str) -> bool:
    """Makes a parameter the scale or bias of a normalisation; False if it cannot be."""
    others = [leaf for leaf in leaves if leaf not in (norm.scale, norm.bias)]
    if role == "bias" and not others:  # only minus mean times scale
        return True
    if len(others) != 1 or getattr(norm, role) is not None:
        return False
    (leaf,) = others
    setattr(norm, role, leaf)
    if norm.node is None:
        norm.node = builder.node(norm.primitive, norm.sources)
    builder.own_vector(leaf, norm.node, "weight" if role == "scale" else "bias")
    return True


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
    if name in ("add", "add_any") and len(sources) > 1 and a.sources != b.sources:
        return Activation(frozenset([builder.node("sum", sources)]))
    if name == "mul" and len(sources) > 1:
        pool = builder.pool_before(b.sources, a.sources) or builder.pool_before(a.sources, b.sources)
        if pool is not None:  # squeeze-excitation, whose inner mean is no node
            builder.contract(pool)
            return Activation(frozenset([builder.node("cse", sources)]))
    return Activation(
        sources,
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
    pooled = statistic.pool is not None and statistic.pool.node in x.norm.sources
    return statistic.sources <= x.norm.sources or pooled


def _with_statistic(builder: GraphBuilder, name: str, x: Activation, statistic: Activation) -> Activation:
    """A map minus its mean, over its deviation, or an exponential over its sum."""
    if name in ("mul", "div") and statistic.rooted:
        primitive = "bn" if statistic.over_batch else "ln"
        return _open_norm(builder, settled(builder, x), primitive, statistic.folded)
    if name in ("add", "sub", "add_any") and x.norm is not None:  # minus the mean, times scale, plus bias
        if statistic.folded and _take(builder, x.norm, statistic.folded, "bias"):
            return _normalized(x.norm)._replace(norm=None)
        return x
    if name == "div" and x.exponential and statistic.exponential:
        return x._replace(exponential=False, softmax=True, features=None, norm=None)
    return x._replace(features=None, norm=None)


def _two_statistics(a: Activation, b: Activation) -> Activation:
    return a._replace(
        sources=a.sources | b.sources,
        features=None,
        norm=None,
        folded={**a.folded, **b.folded},
        over_batch=a.over_batch or b.over_batch,
        rooted=a.rooted or b.rooted,
        exponential=a.exponential or b.exponential,
    )
