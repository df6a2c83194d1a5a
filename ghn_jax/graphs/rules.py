"""What each JAX primitive means for the graph of a network.

A rule takes the abstract values of an equation's operands and returns that of its result, adding nodes on the
way. Conventions are those of the published graphs: a convolution's bias is a node of its own, a norm layer is one node,
a sum or concatenation of what comes from one node is none.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.extend import core

from ghn_jax.graphs.builder import GraphBuilder, settle
from ghn_jax.graphs.graph import PRIMITIVES, Shape
from ghn_jax.graphs.values import (
    Activation,
    Constant,
    Leaf,
    Norm,
    Pool,
    Step,
    Value,
    View,
    Weight,
    joined_views,
    mixed,
    rearranged,
    varying_axes,
)

MARK = "ghn_jax."
"""Prefix of `jax.ad_checkpoint.checkpoint_name`s that say which primitive an array is the output of."""


class CutParameter(ValueError):
    """A layer's weight is only a part of a parameter, its argument."""


def apply(builder: GraphBuilder, equation: core.JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """The results of an equation, some operand of which is no constant."""
    name = equation.primitive.name
    if any(isinstance(value, Activation) for value in operands):
        rule = RULES.get(name)
        if rule is not None:
            return [rule(builder, equation, operands)] * len(equation.outvars)
        return [contracted(builder, operands, name)] * len(equation.outvars)
    return [_weights(name, equation, operands, _shape(var)) for var in equation.outvars]


def constant(name: str, operands: Sequence[Value]) -> Constant:
    """A result that depends on constants alone."""
    known = [value for value in operands if isinstance(value, Constant)]
    return Constant(
        any(value.state for value in known), name in _ROOTS or any(value.rooted for value in known)
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
        rooted=name in _ROOTS or any(x.rooted for x in activations),
        exponential=name in ("exp", "exp2") or any(x.exponential for x in activations),
        softmax=any(x.softmax for x in activations),
        scores=any(x.scores for x in activations),
    )


# -- layers with weights -----------------------------------------------------------------------------------------


def _convolution(builder: GraphBuilder, equation: core.JaxprEqn, operands: Sequence[Value]) -> Value:
    x, kernel = operands
    if not (isinstance(x, Activation) and isinstance(kernel, Weight)):
        return contracted(builder, operands, "convolution")
    params, shape = equation.params, _shape(equation.invars[1])
    numbers = params["dimension_numbers"]
    x = settled(builder, x)
    rank = len(shape) - 2
    if rank > 2:
        builder.leave(kernel.views, f"is the kernel of a {rank}-dimensional convolution")
        return Activation(x.sources)
    to_public = (Step("transpose", tuple(numbers.rhs_spec)),)
    public = tuple(shape[axis] for axis in numbers.rhs_spec)
    if rank < 2:
        public = (*public, *(1 for _ in range(2 - rank)))
        to_public = (*to_public, Step("reshape", public))
    primitive = "conv"
    if params["feature_group_count"] > 1:
        primitive = "dil_conv" if min(params["rhs_dilation"]) > 1 else "sep_conv"
    features = frozenset([numbers.out_spec[1]])
    return _layer(builder, primitive, x, kernel, public, to_public, features)


def _dot(builder: GraphBuilder, equation: core.JaxprEqn, operands: Sequence[Value]) -> Value:
    a, b = operands
    if isinstance(a, Activation) and isinstance(b, Activation):
        a, b = settled(builder, a), settled(builder, b)
        sources = a.sources | b.sources
        if a.softmax or b.softmax:
            return Activation(frozenset([builder.node("msa", sources)]))
        return Activation(sources, scores=True)
    place = 0 if isinstance(a, Weight) else 1
    weight, x = operands[place], operands[1 - place]
    if not (isinstance(weight, Weight) and isinstance(x, Activation)):
        return contracted(builder, operands, "dot_general")
    contracting, batching = equation.params["dimension_numbers"]
    shape, other = _shape(equation.invars[place]), _shape(equation.invars[1 - place])
    inputs = tuple(contracting[place])
    outputs = tuple(axis for axis in range(len(shape)) if axis not in inputs)
    public = (math.prod(shape[i] for i in outputs), math.prod(shape[i] for i in inputs))
    to_public = (Step("transpose", (*outputs, *inputs)), Step("reshape", public))
    shared = len(batching[place])
    free = len(shape) - len(inputs) - shared  # the result has axes (shared, free of a, free of b)
    before = shared if place == 0 else len(other) - len(contracting[0])
    features = frozenset(range(shared)) | frozenset(range(before, before + free))
    return _layer(builder, "conv", settled(builder, x), weight, public, to_public, features)


def _layer(
    builder: GraphBuilder,
    primitive: str,
    x: Activation,
    weight: Weight,
    shape: Shape,
    to_public: View,
    features: frozenset[int],
) -> Activation:
    """A convolution or linear layer: a node that owns the largest parameter its weight is made of."""
    node = builder.node(primitive, x.sources, shape)
    whole = [leaf for leaf, view in weight.views.items() if view is not None]
    if not whole and weight.cut:
        raise CutParameter(next(iter(weight.views)))
    if whole:
        main = min(whole, key=builder.is_owned)
        view = weight.views[main]
        assert view is not None
        builder.own(main, node, "weight", shape, (*view, *to_public))
    builder.leave(weight.views, "is one of several parameters that make a weight")
    return Activation(frozenset([node]), features=features)


# -- elementwise arithmetic: norms, biases, sums, gates ------------------------------------------------------------


def _arithmetic(builder: GraphBuilder, equation: core.JaxprEqn, operands: Sequence[Value]) -> Value:
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
    shape = _shape(equation.invars[place])
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


def _position_form(shape: Shape, axes: frozenset[int], view: View | None) -> tuple[Shape, View] | None:
    """Shape (1, C, H, W) of a positional encoding (..., H, W, C) or (..., H W, C), and the view that leads there."""
    sizes = [shape[axis] for axis in sorted(axes)]
    if view is None or len(sizes) not in (2, 3):
        return None
    if len(sizes) == 2:
        side = math.isqrt(sizes[0])
        if side * side != sizes[0]:
            return None
        sizes = [side, side, sizes[1]]
    height, width, channels = sizes
    public = (1, channels, height, width)
    steps = (
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


# -- pools, reductions, concatenation, views ----------------------------------------------------------------------


def _reduction(builder: GraphBuilder, equation: core.JaxprEqn, operands: Sequence[Value]) -> Value:
    (x, *_) = operands
    axes = tuple(equation.params.get("axes", ()))
    if not isinstance(x, Activation) or not axes:
        return contracted(builder, operands, equation.primitive.name)
    shape = _shape(equation.invars[0])
    pool = x.pool
    if x.level == 0 and 0 not in axes and equation.primitive.name in ("reduce_sum", "reduce_max"):
        if equation.primitive.name == "reduce_sum":
            pool = Pool("glob_avg", x.sources, None)
        else:
            pool = Pool("max_pool", x.sources, _window([shape[axis] for axis in axes]))
    return Activation(
        x.sources,
        x.level + 1,
        pool,
        folded=x.folded,
        over_batch=x.over_batch or 0 in axes,
        rooted=x.rooted,
        exponential=x.exponential,
    )


def _pooling(builder: GraphBuilder, equation: core.JaxprEqn, operands: Sequence[Value]) -> Value:
    x = operands[0]
    window = equation.params.get("window_dimensions", ())
    kind = _POOLS.get(equation.primitive.name) or _reducer(equation)
    if not isinstance(x, Activation) or kind is None:
        return contracted(builder, operands, equation.primitive.name)
    if math.prod(window) == 1:
        return x
    x = settled(builder, x)
    shape, result = _shape(equation.invars[0]), _shape(equation.outvars[0])
    axes = [axis for axis, size in enumerate(window) if size > 1]
    if kind == "avg_pool" and all(result[axis] == 1 for axis in axes) and len(axes) == len(shape) - 2:
        return Activation(frozenset([builder.node("glob_avg", x.sources)]))
    node = builder.node(kind, x.sources, _window([window[axis] for axis in axes]))
    return Activation(frozenset([node]))


def _reducer(equation: core.JaxprEqn) -> str | None:
    """The kind of a pool that is written with a function of its own."""
    body = str(equation.params.get("jaxpr", equation.params.get("body_jaxpr", "")))
    return "max_pool" if " max " in body else "avg_pool" if " add " in body else None


def _window(sizes: Sequence[int]) -> Shape:
    """The shape of a pooling node."""
    height, width = (*sizes, 1)[:2]
    return (1, 1, height, width)


def _concatenation(builder: GraphBuilder, equation: core.JaxprEqn, operands: Sequence[Value]) -> Value:
    del equation
    leaves = [leaf for value in operands if isinstance(value, Weight) for leaf in value.views]
    builder.leave(leaves, "is concatenated with activations, as a class token")
    maps = [settled(builder, value) for value in operands if isinstance(value, Activation)]
    sources = frozenset[int]().union(*(x.sources for x in maps))
    if len(maps) > 1 and len(sources) > 1:
        return Activation(frozenset([builder.node("concat", sources)]))
    return maps[0]._replace(sources=sources, features=None, norm=None)


def _view(builder: GraphBuilder, equation: core.JaxprEqn, operands: Sequence[Value]) -> Value:
    x = operands[0]
    if not isinstance(x, Activation):
        return contracted(builder, operands, equation.primitive.name)
    return x if equation.primitive.name in _CASTS else x._replace(features=None)


def _unary(builder: GraphBuilder, equation: core.JaxprEqn, operands: Sequence[Value]) -> Value:
    del builder
    (x,) = operands
    assert isinstance(x, Activation)
    name = equation.primitive.name
    return x._replace(
        features=None,
        norm=None,
        rooted=x.rooted or name in _ROOTS,
        exponential=x.exponential or name in ("exp", "exp2"),
    )


def _marked(builder: GraphBuilder, equation: core.JaxprEqn, operands: Sequence[Value]) -> Value:
    (x,) = operands
    assert isinstance(x, Activation)
    name = str(equation.params["name"])
    primitive = name.removeprefix(MARK)
    if name == primitive or primitive not in PRIMITIVES:
        return x
    return Activation(frozenset([builder.node(primitive, x.sources)]))


# -- parameters before their use ------------------------------------------------------------------------------------


def _weights(name: str, equation: core.JaxprEqn, operands: Sequence[Value], shape: Shape) -> Value:
    """A result that depends on parameters but not on the input."""
    own = [
        (value, _shape(var))
        for value, var in zip(operands, equation.invars, strict=True)
        if isinstance(value, Weight)
    ]
    first, first_shape = own[0]
    if name in _CASTS:
        return first
    if name == "transpose":
        return rearranged(first, Step("transpose", tuple(equation.params["permutation"])), shape)
    if name == "rev":
        return rearranged(first, Step("rev", tuple(equation.params["dimensions"])), shape)
    if name in ("reshape", "squeeze", "expand_dims", "broadcast_in_dim"):
        if math.prod(first_shape) == math.prod(shape):
            return rearranged(first, Step("reshape", shape), shape)
        places = equation.params.get("broadcast_dimensions", ())
        return mixed(first, shape)._replace(axes=frozenset(places[axis] for axis in first.axes))
    if name in _CUTS and first_shape != shape:
        return mixed(first, shape, cut=True)
    constants = [value for value in operands if isinstance(value, Constant)]
    rooted = any(c.rooted and c.state for c in constants) or any(value.rooted for value, _ in own)
    if name in ("slice", "dot_general") or name.startswith("reduce"):
        views, axes = dict.fromkeys(leaf for value, _ in own for leaf in value.views), varying_axes(shape)
    else:
        views = joined_views(own, shape)
        full = [value.axes for value, own_shape in own if len(own_shape) == len(shape)]
        axes = frozenset[int]().union(*full)
    return Weight(views, axes, rooted, any(value.cut for value, _ in own))


def _shape(atom: Any) -> Shape:
    return tuple(int(size) for size in np.shape(atom.aval))


_ROOTS = frozenset({"sqrt", "rsqrt", "pow"})
_POOLS = {"reduce_window_max": "max_pool", "reduce_window_sum": "avg_pool"}
_CASTS = frozenset(
    {
        "convert_element_type",
        "copy",
        "stop_gradient",
        "reduce_precision",
        "optimization_barrier",
        "sharding_constraint",
        "name",
        "pvary",
    }
)
_CUTS = frozenset({"slice", "dynamic_slice", "gather", "concatenate", "pad", "split", "select_n"})

Rule = Callable[[GraphBuilder, core.JaxprEqn, Sequence[Value]], Value]

RULES: dict[str, Rule] = {
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "concatenate": _concatenation,
    "name": _marked,
    **dict.fromkeys(("add", "add_any", "sub", "mul", "div"), _arithmetic),
    **dict.fromkeys(
        ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin"), _reduction
    ),
    **dict.fromkeys(("reduce_window", *_POOLS), _pooling),
    **dict.fromkeys(
        (*_CASTS - {"name"}, "reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "rev"),
        _view,
    ),
    **dict.fromkeys(
        (
            "integer_pow",
            "square",
            "abs",
            "exp",
            "exp2",
            "log",
            "neg",
            "sqrt",
            "rsqrt",
            "sign",
            "tanh",
            "logistic",
        ),
        _unary,
    ),
}
"""Rules by primitive; what has none is contracted."""
