"""What operations make of arrays that do not depend on a network's input: parameters, state and numbers.

A parameter is followed through rearrangements and functions of its elements, state through what a batch norm does
to its running statistics, and numbers are computed, as a loop's counter says which layer's parameters it takes.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.extend import core

from ghn_jax.graphs.graph import Shape
from ghn_jax.tracing.values import NO_STATISTICS, Axes, Constant, Leaf, Statistics, Value, Weight
from ghn_jax.tracing.views import Places, Step, View, axis_places, carried, follow, steps_of, varying_axes

ROOTS = frozenset({"sqrt", "rsqrt", "pow"})
"""Primitives that make deviations of variances."""

CASTS = frozenset(
    {
        "convert_element_type",
        "copy",
        "copy_p",
        "stop_gradient",
        "reduce_precision",
        "optimization_barrier",
        "sharding_constraint",
        "name",
        "pvary",
    }
)
"""Primitives that leave elements as they are."""

_VIEWS = frozenset({"transpose", "rev", "reshape", "squeeze", "expand_dims", "broadcast_in_dim"})
_CUTS = frozenset({"slice", "dynamic_slice", "split", "concatenate", "pad", "gather"})
_MIXES = frozenset({"dot_general", "conv_general_dilated", "sort", "top_k", "rng_bit_generator", "iota"})
MOST_NUMBERS = 4096
"""Largest constant whose value is computed."""


def static(equation: core.JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """The results of an equation, no operand of which depends on the input."""
    name, params = equation.primitive.name, equation.params
    shapes = [shape_of(var) for var in equation.invars]
    if name == "split":
        return _split(params["axis"], params["sizes"], operands[0], shapes[0])
    value = _number(name, params, operands, equation)
    results: list[Value] = []
    for var in equation.outvars:
        shape, is_bool = shape_of(var), getattr(var.aval, "dtype", None) == np.bool_
        statistics = NO_STATISTICS if is_bool else _statistics(name, params, operands, shapes, shape)
        if any(isinstance(operand, Weight) for operand in operands):
            results.append(_weight(name, params, operands, shapes, shape)._replace(statistics=statistics))
        else:
            results.append(Constant(statistics, value))
    return results


def function_of_elements(name: str, weight: Weight) -> Weight:
    """A weight after a function of each element."""
    return weight._replace(views=_followed(weight.views, (Step("value", (name, None)),)))


# -- parameters ---------------------------------------------------------------------------------------------------


def _weight(
    name: str, params: Mapping[str, Any], operands: Sequence[Value], shapes: Sequence[Shape], shape: Shape
) -> Weight:
    own = [(place, value) for place, value in enumerate(operands) if isinstance(value, Weight)]
    place, first = own[0]
    old = shapes[place]
    if name in CASTS:
        return first
    if name in _VIEWS and len(own) == 1:
        return _rearranged(name, params, first, old, shape)
    if name in ("slice", "dynamic_slice") and place == 0 and len(own) == 1:
        steps = steps_of(name, params, old, shape) if name == "slice" else _known_slice(operands, old, shape)
        if steps is not None:
            cut = _cut(first, steps, shape)
            assert isinstance(cut, Weight)
            return cut
    if name == "gather" and place == 0 and len(own) == 1:
        steps = _known_rows(params, operands[1], old, shape)
        if steps is not None:
            return first._replace(views=_followed(first.views, steps), axes=varying_axes(shape))
    if name == "concatenate":
        return joined(params["dimension"], operands, shapes, shape)
    if name == "pad" and place == 0 and len(own) == 1:
        return _padded(params["padding_config"], first, old, shape)
    if _is_elementwise(name, shapes, shape):
        return _combined(name, params, operands, shapes, shape)
    axes = _mixed_axes(name, params, operands, shapes, shape)
    return Weight(dict.fromkeys(leaf for _, value in own for leaf in value.views), axes)


def _mixed_axes(
    name: str, params: Mapping[str, Any], operands: Sequence[Value], shapes: Sequence[Shape], shape: Shape
) -> frozenset[int]:
    """Axes along which a mixture of elements varies; not those along which a parameter was only repeated."""
    places: list[Mapping[int, int]] = []
    if name == "dot_general":
        contracting, batching = params["dimension_numbers"]
        places = [contracted_axes(shapes[i], contracting[i], batching[i], shape, i) for i in (0, 1)]
    elif name.startswith("reduce_") and "axes" in params:
        kept = [axis for axis in range(len(shapes[0])) if axis not in params["axes"]]
        places = [{axis: place for place, axis in enumerate(kept)}]
    if not places:
        return varying_axes(shape)
    varying = [
        value.axes if isinstance(value, Weight) else varying_axes(own)
        for value, own in zip(operands, shapes, strict=True)
    ]
    return frozenset(
        new[axis] for new, axes in zip(places, varying, strict=False) for axis in axes if axis in new
    )


def contracted_axes(
    shape: Shape, contracting: Sequence[int], batching: Sequence[int], result: Shape, place: int
) -> dict[int, int]:
    """Where the axes of an operand of a dot_general, the first or the second, are in its result."""
    free = [axis for axis in range(len(shape)) if axis not in (*contracting, *batching)]
    start = len(batching) if place == 0 else len(result) - len(free)
    return {axis: i for i, axis in enumerate(batching)} | {axis: start + i for i, axis in enumerate(free)}


def _rearranged(name: str, params: Mapping[str, Any], weight: Weight, old: Shape, shape: Shape) -> Weight:
    places = axis_places(name, params, old, shape)
    axes = None if places is None else carried(weight.axes, places)
    steps = steps_of(name, params, old, shape)
    if steps is None and math.prod(old) == math.prod(shape):
        steps = (Step("reshape", shape),)
    elif steps is None:
        dims = params["broadcast_dimensions"]
        ones = [1] * len(shape)
        for axis, place in enumerate(dims):
            ones[place] = old[axis]
        steps = (Step("reshape", tuple(ones)), Step("broadcast", shape))
    axes = varying_axes(shape) if axes is None else axes
    return weight._replace(views=_followed(weight.views, steps), axes=axes)


def _cut(value: Value, steps: View, shape: Sequence[int]) -> Value:
    """Some of an array's elements."""
    if isinstance(value, Constant):
        known = None if value.value is None else follow(steps, value.value)
        return Constant(_unplaced(value.statistics), known)
    assert isinstance(value, Weight)
    views = _followed(value.views, steps)
    return value._replace(
        views=views, axes=value.axes & varying_axes(tuple(shape)), statistics=_unplaced(value.statistics)
    )


def _split(axis: int, sizes: Sequence[int], value: Value, shape: Shape) -> list[Value]:
    """The parts of an array."""
    parts, start = [], 0
    for size in map(int, sizes):
        cut = [(0, whole, 1) for whole in shape]
        cut[axis] = (start, start + size, 1)
        parts.append(_cut(value, (Step("slice", tuple(cut)),), [stop - first for first, stop, _ in cut]))
        start += size
    return parts


def _padded(config: Sequence[tuple[int, int, int]], weight: Weight, old: Shape, shape: Shape) -> Weight:
    """A parameter with numbers around it."""
    if any(low < 0 or high < 0 or inner for low, high, inner in config):
        return Weight(dict.fromkeys(weight.views), varying_axes(shape))
    steps = tuple(
        Step("place", (axis, low, size))
        for axis, ((low, _, _), size) in enumerate(zip(config, shape, strict=True))
        if size != old[axis]
    )
    return weight._replace(views=_followed(weight.views, steps), axes=varying_axes(shape))


def _known_slice(operands: Sequence[Value], old: Shape, shape: Shape) -> View | None:
    """A slice at known indices."""
    parts = []
    for start, whole, size in zip(operands[1:], old, shape, strict=True):
        if size == whole:
            parts.append((0, whole, 1))
        elif isinstance(start, Constant) and start.value is not None:
            first = min(max(int(start.value), 0), whole - size)
            parts.append((first, first + size, 1))
        else:
            return None
    return (Step("slice", tuple(parts)),)


def _known_rows(params: Mapping[str, Any], indices: Value, old: Shape, shape: Shape) -> View | None:
    """A gather of consecutive rows, as a table of positions is looked up."""
    numbers, rows_at = params["dimension_numbers"], len(shape) - len(old) + 1
    by_row = (
        numbers.start_index_map == numbers.collapsed_slice_dims == (0,) and not numbers.operand_batching_dims
    )
    whole = tuple(params["slice_sizes"]) == (1, *old[1:]) and numbers.offset_dims == tuple(
        range(rows_at, len(shape))
    )
    if not (by_row and whole and isinstance(indices, Constant) and indices.value is not None):
        return None
    rows = np.reshape(indices.value, -1)
    first, stop = int(rows[0]), int(rows[0]) + len(rows)
    if first < 0 or stop > old[0] or not np.array_equal(rows, np.arange(first, stop)):
        return None
    cut = Step("slice", ((first, stop, 1), *((0, size, 1) for size in old[1:])))
    return (*((cut,) if len(rows) < old[0] else ()), Step("reshape", shape))


def joined(axis: int, operands: Sequence[Value], shapes: Sequence[Shape], shape: Shape) -> Weight:
    """Parameters, and numbers, side by side."""
    views: dict[Leaf, View | None] = {}
    start = 0
    for value, own in zip(operands, shapes, strict=True):
        if isinstance(value, Weight):
            for leaf, view in _followed(value.views, (Step("place", (axis, start, shape[axis])),)).items():
                views[leaf] = None if leaf in views else view
        start += own[axis]
    axes = frozenset[int]().union(*(v.axes for v in operands if isinstance(v, Weight)), [axis])
    return Weight(views, axes & varying_axes(shape))


def _combined(
    name: str, params: Mapping[str, Any], operands: Sequence[Value], shapes: Sequence[Shape], shape: Shape
) -> Weight:
    """A function of single elements; parameters that are not broadcast by it keep their rearrangement."""
    views: dict[Leaf, View | None] = {}
    axes = frozenset[int]()
    for place, (value, own) in enumerate(zip(operands, shapes, strict=True)):
        if not isinstance(value, Weight):
            continue
        function = _function(name, params, operands, place)
        steps: View = () if function is None else (Step("value", function),)
        if math.prod(own) != math.prod(shape):
            steps = (*steps, Step("broadcast", shape))
        for leaf, view in _followed(value.views, steps).items():
            if views.get(leaf) is None:
                views[leaf] = view
        axes |= value.axes
    return Weight(views, axes & varying_axes(shape))


def _function(
    name: str, params: Mapping[str, Any], operands: Sequence[Value], place: int
) -> tuple[str, Any] | None:
    """A function of the elements of one operand: its name, and the other operand if that is one number.

    None if the other one is made of running statistics: what is done with them belongs to the norm.
    """
    if len(operands) != 2:
        return ("square", None) if name == "integer_pow" and params["y"] == 2 else (name, None)
    other = operands[1 - place]
    if not _is_free(other):
        return None
    name = f"r{name}" if place == 1 and name in ("sub", "div", "pow") else name
    if not isinstance(other, Constant) or other.value is None or np.size(other.value) != 1:
        return "mixed", name
    return name, float(np.reshape(other.value, ()))


def _followed(views: Mapping[Leaf, View | None], steps: View) -> dict[Leaf, View | None]:
    return {leaf: None if view is None else (*view, *steps) for leaf, view in views.items()}


def _is_elementwise(name: str, shapes: Sequence[Shape], shape: Shape) -> bool:
    if name in _MIXES or name in _CUTS or name.startswith(("reduce", "cum", "arg", "scatter")):
        return False
    return all(len(own) in (0, len(shape)) for own in shapes)


# -- running statistics -------------------------------------------------------------------------------------------


def _statistics(
    name: str, params: Mapping[str, Any], operands: Sequence[Value], shapes: Sequence[Shape], shape: Shape
) -> Statistics:
    own = [
        (place, value.statistics)
        for place, value in enumerate(operands)
        if isinstance(value, Constant | Weight) and not _is_free(value)
    ]
    if not own:
        return NO_STATISTICS
    place, first = own[0]
    if name in CASTS:
        return first
    if name in _VIEWS:
        places = axis_places(name, params, shapes[place], shape)
        return first._replace(axes={leaf: _moved(axes, places) for leaf, axes in first.axes.items()})
    if name in _CUTS:
        return _unplaced(first)
    if not _is_elementwise(name, shapes, shape):
        return NO_STATISTICS
    axes: dict[Leaf, Axes] = {}
    for _, statistics in own:
        axes |= statistics.axes
    roots = frozenset[Leaf]().union(*(s.roots for _, s in own))
    inverse = any(s.inverse for _, s in own)
    if name in ("sqrt", "rsqrt"):
        roots, inverse = frozenset(axes), name == "rsqrt"
    elif name == "pow":
        exponent = operands[1].value if isinstance(operands[1], Constant) else None
        if exponent is not None and abs(float(exponent)) == 0.5:
            roots, inverse = frozenset(axes), float(exponent) < 0
    elif name == "integer_pow":
        inverse = inverse != (params["y"] < 0)
    elif name == "div" and any(place == 1 and s.roots for place, s in own):
        inverse = not inverse
    added = name in ("add", "add_any", "sub") and len(own) < len(operands)
    return Statistics(axes, roots, inverse, added or any(s.offset for _, s in own))


def _is_free(value: Value) -> bool:
    return not isinstance(value, Constant | Weight) or not value.statistics.axes


def _unplaced(statistics: Statistics) -> Statistics:
    """Of some elements, it is not known along which axes the state lies."""
    return statistics._replace(axes=dict.fromkeys(statistics.axes)) if statistics.axes else statistics


def _moved(axes: Axes, places: Places | None) -> Axes:
    if axes is None or places is None:
        return None
    new = tuple(tuple(place for axis in part for place in places.get(axis, ())) for part in axes)
    flat = [axis for part in new for axis in part]
    return new if len(set(flat)) == len(flat) else None


# -- numbers ------------------------------------------------------------------------------------------------------

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "neg": np.negative,
    "rem": np.fmod,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "select_n": lambda which, *cases: np.choose(which, cases),
    "clamp": lambda low, x, high: np.clip(x, low, high),
}


def _number(
    name: str, params: Mapping[str, Any], operands: Sequence[Value], equation: core.JaxprEqn
) -> np.ndarray | None:
    """The value of a small constant that is made of numbers."""
    shape = shape_of(equation.outvars[0])
    if math.prod(shape) > MOST_NUMBERS:
        return None
    if name == "iota":
        return _iota(shape, params["dimension"], params["dtype"])
    values = [np.asarray(v.value) for v in operands if isinstance(v, Constant) and v.value is not None]
    if not values or len(values) < len(operands):
        return None
    if name in CASTS:
        dtype = params.get("new_dtype")
        return values[0] if dtype is None else values[0].astype(dtype)
    if name == "broadcast_in_dim":
        ones = [1] * len(shape)
        for axis, place in enumerate(params["broadcast_dimensions"]):
            ones[place] = np.shape(values[0])[axis]
        return np.broadcast_to(np.reshape(values[0], ones), shape)
    steps = steps_of(name, params, np.shape(values[0]), shape)
    if steps is None and name == "dynamic_slice":
        steps = _known_slice(operands, np.shape(values[0]), shape)
    if steps is not None:
        return follow(steps, values[0])
    function = _FUNCTIONS.get(name)
    return None if function is None else np.asarray(function(*values))


@functools.lru_cache(maxsize=64)
def _iota(shape: Shape, dimension: int, dtype: Any) -> np.ndarray:
    ones = [1] * len(shape)
    ones[dimension] = shape[dimension]
    return np.broadcast_to(np.arange(shape[dimension], dtype=dtype).reshape(ones), shape)


def shape_of(atom: Any) -> Shape:
    """Shape of a variable or literal of a jaxpr."""
    return tuple(int(size) for size in np.shape(atom.aval))
