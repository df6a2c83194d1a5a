"""What each JAX primitive means for the graph of a network.

A rule takes the abstract values of an equation's operands and returns that of its result, adding nodes on the
way. Conventions are those of the published graphs: a convolution's bias is a node of its own, a norm layer is one node,
a sum or concatenation of what comes from one node is none.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jax.extend import core

from ghn_jax.graphs.graph import PRIMITIVES, Shape
from ghn_jax.tracing.arithmetic import arithmetic, scaled
from ghn_jax.tracing.builder import GraphBuilder, Owned
from ghn_jax.tracing.contraction import contracted, makes_truth, settled
from ghn_jax.tracing.layers import has_own, layer, side_by_side
from ghn_jax.tracing.statics import CASTS, ROOTS, contracted_axes, shape_of, static
from ghn_jax.tracing.values import Activation, Pool, Value, Weight
from ghn_jax.tracing.views import Step, View, axis_places, is_cut, keeps_all, positions

MARK = "ghn_jax."
"""Prefix of `jax.ad_checkpoint.checkpoint_name`s that say which primitive an array is the output of."""


def apply(builder: GraphBuilder, equation: core.JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """The results of an equation."""
    name = equation.primitive.name
    if not any(isinstance(value, Activation) for value in operands):
        return static(equation, operands)
    rule = RULES.get(name)
    if rule is not None:
        return [rule(builder, equation, operands)] * len(equation.outvars)
    return [contracted(builder, operands, name, makes_truth(equation))] * len(equation.outvars)


# -- layers with weights -----------------------------------------------------------------------------------------


def _convolution(builder: GraphBuilder, equation: core.JaxprEqn, operands: Sequence[Value]) -> Value:
    x, kernel = operands
    if not (isinstance(x, Activation) and isinstance(kernel, Weight)):
        return contracted(builder, operands, "convolution")
    params, shape = equation.params, shape_of(equation.invars[1])
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
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
    if groups > 1:
        primitive = "dil_conv" if min(params["rhs_dilation"]) > 1 else "sep_conv"
    features = numbers.out_spec[1]
    count = _number_mapped(builder, kernel, to_public, len(shape))
    if count > 1 and groups in (1, count):
        size = (public[0] // count, *public[1:])
        cuts = [
            Step("slice", ((i * size[0], (i + 1) * size[0], 1), *((0, s, 1) for s in size[1:])))
            for i in range(count)
        ]
        along = numbers.lhs_spec[1] if groups > 1 else None
        nodes = side_by_side(builder, x, along, kernel, size, [(*to_public, cut) for cut in cuts])
        return Activation(frozenset(nodes), features=frozenset([features]), experts=(features, nodes))
    return layer(builder, primitive, x, kernel, public, to_public, frozenset([features]))


def _number_mapped(builder: GraphBuilder, kernel: Weight, to_public: View, rank: int) -> int:
    """Of how many convolutions one is the `jax.vmap`: its kernel has one more axis, the outer of its features."""
    (leaf, view), *others = kernel.views.items()
    shape = builder.shape(leaf)
    if others or view is None or len(shape) != rank + 1 or not keeps_all(view):
        return 1
    by_kernel = positions((*view, *to_public), shape).reshape(shape[0], -1) // math.prod(shape[1:])
    return shape[0] if (by_kernel == np.arange(shape[0])[:, None]).all() else 1


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
    shape, result = shape_of(equation.invars[place]), shape_of(equation.outvars[0])
    shared = tuple(batching[place])
    inputs = tuple(axis for _, axis in sorted(zip(contracting[1 - place], contracting[place], strict=True)))
    if not inputs:  # an elementwise or outer product
        return scaled(builder, x, weight)._replace(features=None)
    x = settled(builder, x)
    free = tuple(axis for axis in range(len(shape)) if axis not in (*inputs, *shared))
    axes = contracted_axes(shape, inputs, shared, result, place)
    if shared and not has_own(builder, weight, len(shape)):
        builder.leave(weight.views, "makes a learned query or key, which no layer makes of the input")
        return Activation(x.sources, scores=True)
    experts = [axis for axis in shared if axis in weight.axes]
    if not experts and len(free) > 1 and free[0] == 0 and free[0] < min(inputs) < free[-1]:
        experts = [0] if shape[0] > 1 else []  # jax.vmap over the parameters of a linear layer
    rest = tuple(axis for axis in (*shared, *free) if axis not in experts)
    public = (math.prod(shape[i] for i in rest), math.prod(shape[i] for i in inputs))
    if not experts:
        to_public = (Step("transpose", (*rest, *inputs)), Step("reshape", public))
        return layer(builder, "conv", x, weight, public, to_public, frozenset(axes[axis] for axis in rest))
    count = math.prod(shape[axis] for axis in experts)
    order = (Step("transpose", (*experts, *rest, *inputs)), Step("reshape", (count, *public)))
    views = [
        (*order, Step("slice", ((i, i + 1, 1), *((0, size, 1) for size in public))), Step("reshape", public))
        for i in range(count)
    ]
    along = batching[1 - place][shared.index(experts[0])] if experts[0] in shared else None
    nodes = side_by_side(builder, x, along, weight, public, views)
    features = frozenset(axes[axis] for axis in rest if axis in free)
    return Activation(
        frozenset(nodes), features=features, experts=(axes[experts[0]], nodes) if len(experts) == 1 else None
    )


def _lookup(builder: GraphBuilder, equation: core.JaxprEqn, operands: Sequence[Value]) -> Value:
    """Rows of a table, as a layer embeds tokens: what multiplying it with one-hot vectors would be."""
    table, indices = operands
    numbers, shape = equation.params["dimension_numbers"], shape_of(equation.invars[0])
    (leaf, view), *others = table.views.items() if isinstance(table, Weight) else ((None, None),)
    rows = numbers.start_index_map
    is_embedding = len(shape) == 2 and len(rows) == 1 and numbers.collapsed_slice_dims == rows
    if leaf is None or view is None or others or not is_embedding or not isinstance(indices, Activation):
        return contracted(builder, operands, "gather")
    (row,) = rows
    public = (shape[row], shape[1 - row])
    node = builder.node("conv", settled(builder, indices).sources, public)
    to_public = (*view, Step("transpose", (row, 1 - row)))
    builder.own(Owned(leaf, node, "weight", public, to_public), is_lookup=True)
    return Activation(frozenset([node]), features=frozenset(numbers.offset_dims))


# -- pools, reductions, concatenation, views ----------------------------------------------------------------------


def _reduction(builder: GraphBuilder, equation: core.JaxprEqn, operands: Sequence[Value]) -> Value:
    (x, *_) = operands
    axes = tuple(equation.params.get("axes", ()))
    if not isinstance(x, Activation) or not axes:
        return contracted(builder, operands, equation.primitive.name)
    shape = shape_of(equation.invars[0])
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    experts = (kept.index(x.experts[0]), x.experts[1]) if x.experts and x.experts[0] in kept else None
    pool = x.pool
    if x.level == 0 and 0 not in axes and equation.primitive.name in ("reduce_sum", "reduce_max"):
        if equation.primitive.name == "reduce_sum":
            pool = Pool("glob_avg", x.sources, None)
        else:
            pool = Pool("max_pool", x.sources, _window([shape[axis] for axis in axes]))
        pool.experts = experts[1] if experts else ()
    return Activation(
        x.sources,
        x.level + 1,
        pool,
        experts=experts,
        folded=x.folded,
        over_batch=x.over_batch or 0 in axes,
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
    return Activation(frozenset([node]), features=x.features)


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
    beside = {
        leaf: view for value in operands if isinstance(value, Weight) for leaf, view in value.views.items()
    }
    builder.leave(beside, "is concatenated with activations, as a class token")
    builder.tokens |= {leaf for leaf, view in beside.items() if view is not None and not is_cut(view)}
    maps = [settled(builder, value) for value in operands if isinstance(value, Activation)]
    sources = frozenset[int]().union(*(x.sources for x in maps))
    features = maps[0].features if len({x.features for x in maps}) == 1 else None
    if len(maps) > 1 and len(sources) > 1:
        return Activation(frozenset([builder.node("concat", sources)]), features=features)
    return maps[0].further(sources=sources, features=features)


def _view(builder: GraphBuilder, equation: core.JaxprEqn, operands: Sequence[Value]) -> Value:
    x, name = operands[0], equation.primitive.name
    if not isinstance(x, Activation):
        return contracted(builder, operands, name)
    if name in CASTS:
        return x
    shape = shape_of(equation.outvars[0])
    places = axis_places(name, equation.params, shape_of(equation.invars[0]), shape)
    return x._replace(features=None, experts=None) if places is None else x.moved(places, shape)


def _unary(builder: GraphBuilder, equation: core.JaxprEqn, operands: Sequence[Value]) -> Value:
    del builder
    (x,) = operands
    assert isinstance(x, Activation)
    name = equation.primitive.name
    return x.further(
        experts=x.experts,
        rooted=name in ROOTS or (x.rooted and name not in _GATES),
        exponential=x.exponential or name in ("exp", "exp2"),
    )


def _marked(builder: GraphBuilder, equation: core.JaxprEqn, operands: Sequence[Value]) -> Value:
    (x,) = operands
    assert isinstance(x, Activation)
    name = str(equation.params["name"])
    primitive = name.removeprefix(MARK)
    if name == primitive or primitive not in PRIMITIVES:
        return x
    return Activation(frozenset([builder.node(primitive, x.sources)]), features=x.features)


_GATES = frozenset({"exp", "exp2", "log", "logistic", "tanh", "sign"})
"""Functions of a deviation that are none."""

_POOLS = {"reduce_window_max": "max_pool", "reduce_window_sum": "avg_pool"}

Rule = Callable[[GraphBuilder, core.JaxprEqn, Sequence[Value]], Value]

RULES: dict[str, Rule] = {
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "concatenate": _concatenation,
    "gather": _lookup,
    "name": _marked,
    **dict.fromkeys(("add", "add_any", "sub", "mul", "div"), arithmetic),
    **dict.fromkeys(
        ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin"), _reduction
    ),
    **dict.fromkeys(("reduce_window", *_POOLS), _pooling),
    **dict.fromkeys(
        (*CASTS - {"name"}, "reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "rev"),
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
