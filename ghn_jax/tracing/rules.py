"""What each JAX primitive means for the graph of a network.

A rule takes the abstract values of an equation's operands and returns that of its result, adding nodes on the
way. Conventions are those of the published graphs: a convolution's bias is a node of its own, a norm layer is one node,
a sum or concatenation of what comes from one node is none.
"""

import math
from collections.abc import Callable, Sequence

from jax.extend import core

from ghn_jax.graphs.graph import PRIMITIVES, Shape
from ghn_jax.tracing.arithmetic import arithmetic
from ghn_jax.tracing.builder import GraphBuilder
from ghn_jax.tracing.contraction import ROOTS, contracted, settled, shape_of
from ghn_jax.tracing.values import (
    Activation,
    Constant,
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
    return [_weights(name, equation, operands, shape_of(var)) for var in equation.outvars]


# -- layers with weights -----------------------------------------------------------------------------------------


def _convolution(builder: GraphBuilder, equation: core.JaxprEqn, operands: Sequence[Value]) -> Value:
    x, kernel = operands
    if not (isinstance(x, Activation) and isinstance(kernel, Weight)):
        return contracted(builder, operands, "convolution")
    params, shape = equation.params, shape_of(equation.invars[1])
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
    shape, other = shape_of(equation.invars[place]), shape_of(equation.invars[1 - place])
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


# -- pools, reductions, concatenation, views ----------------------------------------------------------------------


def _reduction(builder: GraphBuilder, equation: core.JaxprEqn, operands: Sequence[Value]) -> Value:
    (x, *_) = operands
    axes = tuple(equation.params.get("axes", ()))
    if not isinstance(x, Activation) or not axes:
        return contracted(builder, operands, equation.primitive.name)
    shape = shape_of(equation.invars[0])
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
    shape, result = shape_of(equation.invars[0]), shape_of(equation.outvars[0])
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
        rooted=x.rooted or name in ROOTS,
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
        (value, shape_of(var))
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
    **dict.fromkeys(("add", "add_any", "sub", "mul", "div"), arithmetic),
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
