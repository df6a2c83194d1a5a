"""Convolutions and linear layers: which parameter each owns, or which part of one."""

from collections.abc import Sequence

import numpy as np

from ghn_jax.graphs.graph import Shape
from ghn_jax.tracing.builder import GraphBuilder, Owned
from ghn_jax.tracing.values import Activation, Leaf, Weight
from ghn_jax.tracing.views import FOREIGN, Step, View, is_cut, is_invertible, keeps_all, positions

_SAMPLES = (-1.0, -0.1, 0.1, 1.0)
"""Elements of a weight that any of its functions must be able to give."""


def layer(
    builder: GraphBuilder,
    primitive: str,
    x: Activation,
    weight: Weight,
    shape: Shape,
    to_public: View,
    features: frozenset[int],
) -> Activation:
    """A layer: a node that owns the largest parameter its weight is made of.

    Args:
      x: its input.
      shape: of its weight, in PyTorch's layout; `to_public` leads there.
      features: axes of the output's features.
    """
    pieces = [leaf for leaf, view in weight.views.items() if view and _is_placed(view)]
    if pieces:
        nodes = _pieces(builder, primitive, x, weight, pieces, to_public)
        if nodes:
            return Activation(frozenset(nodes), features=features)
    node = builder.node(primitive, x.sources, shape)
    _give(builder, weight, node, shape, to_public)
    return Activation(frozenset([node]), features=features)


def side_by_side(
    builder: GraphBuilder,
    x: Activation,
    along: int | None,
    weight: Weight,
    shape: Shape,
    to_public: Sequence[View],
) -> tuple[int, ...]:
    """Layers of one shape, each with its part of a parameter: their nodes.

    Each sees its own part of the input's axis `along`, if that is given: of layers that lie there it comes after one.
    """
    before = [x.sources] * len(to_public)
    if x.experts and x.experts[0] == along and len(x.experts[1]) == len(to_public):
        before = [frozenset([node]) for node in x.experts[1]]
    nodes = tuple(builder.node("conv", sources, shape) for sources in before)
    for node, view in zip(nodes, to_public, strict=True):
        _give(builder, weight, node, shape, view)
    return nodes


def _give(builder: GraphBuilder, weight: Weight, node: int, shape: Shape, to_public: View) -> None:
    """Gives a node the parameter that its weight is, whole or cut, or the first new one of those it is made of."""
    usable = _usable(weight)
    main = min(usable, key=lambda leaf: (is_cut(usable[leaf]), builder.is_owned(leaf)), default=None)
    if main is None:
        why = (
            "is repeated to make"
            if any(view is not None for view in weight.views.values())
            else "is mixed into"
        )
        builder.leave(weight.views, f"{why} the weight of a layer, of shape {shape}")
        return
    view = usable[main]
    builder.own(Owned(main, node, "weight", shape, (*view, *to_public), _function(view)))
    builder.leave(
        weight.views, f"is one of several parameters that make the weight of layer {builder.name(main)!r}"
    )


def _usable(weight: Weight) -> dict[Leaf, View]:
    """The parameters of which each element is in a weight once."""
    return {leaf: view for leaf, view in weight.views.items() if view is not None and not _is_repeated(view)}


def has_own(builder: GraphBuilder, weight: Weight, rank: int) -> bool:
    """Whether some parameter is the weight, rather than mixed into it, or the bias of what is."""
    is_mixture = any(view is None for view in weight.views.values())
    return any(not is_mixture or len(builder.shape(leaf)) >= rank for leaf in _usable(weight))


def _function(view: View) -> View:
    """What is done with each element, if it can be undone."""
    function = tuple(step for step in view if step.kind == "value")
    return function if is_invertible(function, _SAMPLES) else ()


def _pieces(
    builder: GraphBuilder,
    primitive: str,
    x: Activation,
    weight: Weight,
    leaves: Sequence[Leaf],
    to_public: View,
) -> list[int]:
    """Nodes of a layer whose weight is put together of several parameters: each is a layer of its own."""
    nodes = []
    for leaf in leaves:
        view = weight.views[leaf]
        assert view is not None
        whole = positions((*view, *to_public), builder.shape(leaf))
        box = filled_box(whole)
        if box is None:
            continue
        shape = tuple(stop - start for start, stop, _ in box)
        node = builder.node(primitive, x.sources, shape)
        view = (*view, *to_public, Step("slice", box))
        builder.own(Owned(leaf, node, "weight", shape, view, _function(view)))
        nodes.append(node)
    builder.leave(weight.views, "is joined with other parameters to make the weight of a layer")
    return nodes


def filled_box(where: np.ndarray) -> tuple[tuple[int, int, int], ...] | None:
    """The block in which a parameter's elements lie among others, each once; None if they are no block."""
    own = where != FOREIGN
    box = []
    for axis in range(where.ndim):
        places = np.flatnonzero(own.any(tuple(a for a in range(where.ndim) if a != axis)))
        if not len(places):
            return None
        box.append((int(places[0]), int(places[-1]) + 1, 1))
    inside = where[tuple(slice(*part) for part in box)]
    return tuple(box) if len(np.unique(inside)) == inside.size and (inside != FOREIGN).all() else None


def _is_placed(view: View) -> bool:
    return any(step.kind == "place" for step in view)


def _is_repeated(view: View) -> bool:
    return not (keeps_all(view) or is_cut(view)) or any(step.kind in ("broadcast", "place") for step in view)
