"""Scales and biases of norms, biases of layers, and positional encodings: what is multiplied with or added to a map."""

import math
from typing import Literal

from ghn_jax.graphs.graph import Shape
from ghn_jax.tracing.builder import GraphBuilder, Owned, Role
from ghn_jax.tracing.layers import filled_box
from ghn_jax.tracing.values import Activation, Leaf, Norm, Weight
from ghn_jax.tracing.views import Step, View, is_cut, is_invertible, positions

_SCALES = (0.05, 1.0, 1.95)
_BIASES = (-2.0, -0.1, 0.1, 2.0)
"""Elements that a function of a vector's elements must be able to give; scales are between 0 and 2."""


def take(builder: GraphBuilder, norm: Norm, weight: Weight, part: Literal["scale", "bias"]) -> bool:
    """Makes a parameter the scale or bias of a normalisation; False if it cannot be."""
    others = [leaf for leaf in weight.views if leaf not in (norm.scale, norm.bias)]
    if part == "bias" and not others:  # only minus mean times scale
        return True
    if len(others) != 1 or getattr(norm, part) is not None:
        return False
    (leaf,) = others
    if part == "bias" and not _fits(builder, norm, leaf, weight):
        return False
    role: Role = "weight" if part == "scale" else "bias"
    node = builder.node(norm.primitive, norm.sources) if norm.node is None else norm.node
    size = _own_vector(builder, leaf, weight.views[leaf], node, role, None)
    if norm.node is None or part == "scale":
        builder.resize(node, size or (math.prod(builder.shape(leaf)),))
    norm.node = node
    setattr(norm, part, leaf)
    return True


def _fits(builder: GraphBuilder, norm: Norm, leaf: Leaf, weight: Weight) -> bool:
    """Whether a parameter has the axes of a norm's bias, rather than those of positions."""
    if len(weight.axes) <= 1:
        return True
    if norm.scale is not None:
        return builder.shape(leaf) == builder.shape(norm.scale)
    return norm.features is not None and weight.axes <= norm.features


def add_bias(builder: GraphBuilder, x: Activation, weight: Weight, shape: Shape) -> Activation:
    """A map plus a parameter of this shape: the bias of the norm or layer before, or a positional encoding.

    A class token goes on by a shortcut: it is added to what attention made of it, and is no bias.
    """
    if weight.views and weight.views.keys() <= builder.tokens:
        return x.further()
    if x.norm and take(builder, x.norm, weight, "bias"):
        assert x.norm.node is not None or not weight.views
        sources = x.sources if x.norm.node is None else frozenset([x.norm.node])
        return Activation(sources, features=x.features)
    if x.scores and not x.softmax:
        builder.leave(weight.views, "is a bias of attention scores")
        return x
    if (
        x.experts
        and x.experts[0] in weight.axes
        and weight.axes - {x.experts[0]} <= (x.features or weight.axes)
    ):
        return _expert_biases(builder, x, weight, shape)
    if len(weight.axes) <= 1 or (x.features is not None and weight.axes <= x.features):
        return _layer_bias(builder, x, weight, tuple(shape[axis] for axis in sorted(weight.axes)))
    new = [leaf for leaf in weight.views if not builder.is_owned(leaf)] or list(weight.views)
    if len(new) > 1:
        builder.leave(new, "is added to a map together with other parameters")
        return x.further()
    (leaf,) = new
    form = _position_form(builder.shape(leaf), weight.views[leaf], shape, weight.axes, x.features)
    if form is None:
        why = "of no square map" if weight.views[leaf] is not None else "in an order that cannot be followed"
        builder.leave(new, f"is a positional encoding, but {why}")
        return x.further()
    public, view = form
    position = builder.node("pos_enc", (), public)
    builder.own(Owned(leaf, position, "weight", public, view))
    return Activation(frozenset([builder.node("sum", x.sources | {position})]), features=x.features)


def _layer_bias(builder: GraphBuilder, x: Activation, weight: Weight, sizes: Shape) -> Activation:
    """The bias of a layer, or several parameters side by side that make one: each is a node."""
    pieces = {
        leaf: view for leaf, view in weight.views.items() if view and any(s.kind == "place" for s in view)
    }
    if len(pieces) != len(weight.views):
        pieces = {}
        new = [leaf for leaf in weight.views if not builder.is_owned(leaf)] or list(weight.views)
        if len(new) > 1:
            builder.leave(new, "is added to a map together with other parameters")
            return x.further()
        pieces[new[0]] = weight.views[new[0]]
    nodes = []
    for leaf, view in pieces.items():
        node = builder.node("bias", x.sources)
        size = _own_vector(builder, leaf, view, node, "bias", math.prod(sizes))
        if size is not None:
            builder.resize(node, size)
            nodes.append(node)
    return Activation(frozenset(nodes), features=x.features) if nodes else x.further()


def _expert_biases(builder: GraphBuilder, x: Activation, weight: Weight, shape: Shape) -> Activation:
    """The biases of layers that run side by side."""
    assert x.experts
    axis, layers = x.experts
    nodes = []
    for i, layer in enumerate(layers):
        part = Step("slice", tuple((i, i + 1, 1) if a == axis else (0, n, 1) for a, n in enumerate(shape)))
        size = (math.prod(shape[a] for a in weight.axes if a != axis),)
        nodes.append(builder.node("bias", [layer], size))
        for leaf, view in weight.views.items():
            if view is None:
                builder.leave([leaf], "is mixed into the biases of layers that run side by side")
            else:
                steps = (*view, *_kept_axes(shape, weight.axes), part, Step("reshape", size))
                builder.own(Owned(leaf, nodes[-1], "bias", size, steps))
    return Activation(frozenset(nodes), features=x.features, experts=(axis, tuple(nodes)))


def _kept_axes(shape: Shape, axes: frozenset[int]) -> View:
    """Takes one element along axes that a weight does not vary along, should it be repeated there."""
    parts = tuple((0, n if axis in axes else 1, 1) for axis, n in enumerate(shape))
    return () if all(part[1] == n for part, n in zip(parts, shape, strict=True)) else (Step("slice", parts),)


def _own_vector(
    builder: GraphBuilder, leaf: Leaf, view: View | None, node: int, role: Role, size: int | None
) -> tuple[int] | None:
    """Gives a vector, whole or cut, to a node; its size, or None if it cannot be given."""
    shape = builder.shape(leaf)
    whole = (math.prod(shape),)
    if view is None:
        builder.leave([leaf], "is mixed into the scale or bias of a layer")
        return None
    function = tuple(step for step in view if step.kind == "value")
    if not is_invertible(function, _SCALES if role == "weight" else _BIASES):
        names = " and ".join(sorted({step.argument[0] for step in function}))
        what = "scale" if role == "weight" else "bias"
        builder.leave([leaf], f"is the {what} of a layer after {names}, which cannot be undone")
        return None
    if not is_cut(view):
        if size is not None and size != whole[0] and not any(step.kind == "place" for step in view):
            builder.leave([leaf], f"has {whole[0]} elements, and the layer it is added to {size}")
            return None
        builder.own(Owned(leaf, node, role, whole, None, function))
        return whole
    block = filled_box(positions(view, shape).reshape(-1))
    if block is None:
        builder.leave([leaf], "is repeated, or joined with others, to make the scale or bias of a layer")
        return None
    part = (block[0][1] - block[0][0],)
    builder.own(
        Owned(leaf, node, role, part, (*view, Step("reshape", (-1,)), Step("slice", block)), function)
    )
    return part


_CLASS_TOKENS = 2
"""Tokens without a place that may come before the others: for the class, and to be distilled."""


def _position_form(
    leaf: Shape, view: View | None, shape: Shape, axes: frozenset[int], features: frozenset[int] | None
) -> tuple[Shape, View] | None:
    """Shape (1, C, H, W) of a positional encoding, and the view that leads there.

    It is (..., H, W, C) or (..., H W, C), or with channels first where the map's features are known to be there. Of
    (..., 1 + H W, C), as with a class token, the first row is left out; so are rows of zeros around a parameter.
    """
    if view is None or len(axes) not in (2, 3) or not is_invertible(view, _BIASES):
        return None
    order = sorted(axes)
    channel = next(iter(features & axes)) if features and len(features & axes) == 1 else order[-1]
    places = [axis for axis in order if axis != channel]
    sizes = [shape[axis] for axis in places]
    rest = [axis for axis in range(len(shape)) if axis not in axes]
    view = (
        *view,
        *_kept_axes(shape, axes),
        Step("transpose", (*rest, *places, channel)),
        Step("reshape", (math.prod(sizes), shape[channel])),
    )
    if any(step.kind == "place" for step in view):
        block = filled_box(positions(view, leaf))
        if block is None or block[1][:2] != (0, shape[channel]):
            return None
        view = (*view, Step("slice", block))
        sizes = [block[0][1] - block[0][0]]
    if len(sizes) == 1:
        (count,) = sizes
        sizes = [math.isqrt(count)] * 2
        extra = count - math.prod(sizes)
        if extra > _CLASS_TOKENS:
            return None
        view = (*view, Step("drop", (extra,))) if extra else view
    public = (1, shape[channel], *sizes)
    return public, (*view, Step("transpose", (1, 0)), Step("reshape", public))
