"""How arrays are rearranged: where their elements, and their axes, go.

A parameter reaches the layer that uses it through reshapes, transposes, slices, and functions of single elements. The
way back tells where in the parameter, and as what, the layer's weight is to be written.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ghn_jax.graphs.graph import Shape

Places = Mapping[int, tuple[int, ...]]
"""For each old axis the new ones that it became; those of one element may be left out."""


class Step(NamedTuple):
    """One rearrangement of an array's elements, or a function of each.

    Attributes:
      kind: 'reshape' to a shape; 'transpose' by a permutation; 'rev' along axes; 'drop' the first few rows,
        which are of tokens that have no place; 'slice' by (start, stop, step) of each
        axis; 'broadcast' to a shape; 'place' among other elements, (axis, start, size); or the 'value' of a
        function: its name, and the other operand.
      argument: see `kind`.
    """

    kind: Literal["reshape", "transpose", "rev", "drop", "slice", "broadcast", "place", "value"]
    argument: tuple[Any, ...]

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """The rearranged array, a view of the old one where possible; functions of elements leave it as it is."""
        match self.kind:
            case "reshape":
                return array.reshape(self.argument)
            case "transpose":
                return array.transpose(self.argument)
            case "rev":
                return np.flip(array, self.argument)
            case "drop":
                return array[self.argument[0] :]
            case "slice":
                return array[tuple(slice(*part) for part in self.argument)]
            case "broadcast":
                return np.broadcast_to(array, self.argument)
            case "place":
                axis, start, size = self.argument
                padding = [(0, 0)] * array.ndim
                padding[axis] = (start, size - start - array.shape[axis])
                return np.pad(array, padding, constant_values=FOREIGN)
            case _:
                return array


View = tuple[Step, ...]
"""How a parameter is rearranged between its leaf and its use."""

FOREIGN = -1
"""In positions: an element of another parameter."""


def positions(view: View, shape: Shape) -> np.ndarray:
    """Which element of an array of this shape each element of a view of it is."""
    return follow(view, np.arange(math.prod(shape)).reshape(shape))


def keeps_all(view: View) -> bool:
    """Whether a view has each element once, and nothing else."""
    return all(step.kind in ("reshape", "transpose", "rev", "value") for step in view)


def is_cut(view: View) -> bool:
    """Whether a view leaves elements out."""
    return any(step.kind == "slice" for step in view)


_INVERSES: dict[str, Callable[[np.ndarray, Any], np.ndarray]] = {
    "add": lambda y, c: y - c,
    "add_any": lambda y, c: y - c,
    "sub": lambda y, c: y + c,
    "rsub": lambda y, c: c - y,
    "mul": lambda y, c: y / c,
    "div": lambda y, c: y * c,
    "rdiv": lambda y, c: c / y,
    "neg": lambda y, _: -y,
    "exp": lambda y, _: np.log(y),
    "log": lambda y, _: np.exp(y),
    "log1p": lambda y, _: np.expm1(y),
    "sqrt": lambda y, _: np.square(y),
    "square": lambda y, _: np.sqrt(y),
    "softplus": lambda y, _: np.log(np.expm1(y)),
}


def is_rooted(view: View | None) -> bool:
    """Whether a root was taken of each element."""
    return any(step.kind == "value" and _exponent(*step.argument) for step in view or ())


def is_deviation(view: View | None, divides: bool, centred: bool) -> bool:
    """Whether a map is divided by the root of elements, as by that of a variance: an epsilon is added, or the map is
    centred.

    Args:
      divides: whether the map is divided by what the elements became, or multiplied with it.
      centred: whether something was just subtracted from the map.
    """
    has_offset, exponent = centred, 0.0
    for step in view or ():
        if step.kind == "value":
            name, _ = step.argument
            if root := _exponent(*step.argument):
                exponent = root
            elif name == "rdiv" or step.argument == ("mixed", "rdiv"):
                exponent = -exponent
            has_offset = has_offset or name in ("add", "add_any")
    return has_offset and (exponent > 0 if divides else exponent < 0)


def _exponent(name: str, operand: Any) -> float:
    """Of a function that takes the root of elements; 0 for others."""
    if name == "pow" and operand is not None and abs(operand) == 0.5:
        return operand
    return {"sqrt": 0.5, "rsqrt": -0.5}.get(name, 0.0)


def invert(view: View, effective: np.ndarray) -> np.ndarray:
    """The elements of a parameter, given those that a layer sees; NaN or infinite where there are none."""
    with np.errstate(all="ignore"):
        for step in reversed(view):
            if step.kind == "value":
                name, operand = step.argument
                inverse = _INVERSES.get(name)
                effective = inverse(effective, operand) if inverse else np.full_like(effective, np.nan)
    return effective


def is_invertible(view: View, samples: Sequence[float]) -> bool:
    """Whether a parameter can be such that its layer sees these elements."""
    return bool(np.isfinite(invert(view, np.array(samples, np.float64))).all())


def varying_axes(shape: Shape) -> frozenset[int]:
    """Axes along which an array of this shape can vary."""
    return frozenset(axis for axis, size in enumerate(shape) if size > 1)


def carried(axes: frozenset[int], places: Places) -> frozenset[int] | None:
    """Where these axes are now; None if they share one with others."""
    new = frozenset(place for axis in axes for place in places.get(axis, ()))
    others = {place for axis, found in places.items() if axis not in axes for place in found}
    return None if new & others else new


def axis_places(name: str, params: Mapping[str, Any], shape: Shape, new: Shape) -> Places | None:
    """What a primitive does to the axes of its operand; None if it does more than rearrange them."""
    if name == "transpose":
        return {old: (place,) for place, old in enumerate(params["permutation"])}
    if name == "broadcast_in_dim":
        return {
            axis: (int(place),)
            for axis, place in enumerate(params["broadcast_dimensions"])
            if shape[axis] == new[place]
        }
    if name in ("reshape", "squeeze", "expand_dims"):
        order = _read_order(name, params) or range(len(shape))
        found = _regrouped(tuple(shape[axis] for axis in order), new)
        return {axis: found[place] for place, axis in enumerate(order) if place in found}
    if len(shape) == len(new):
        return {axis: (axis,) for axis in range(len(shape))}
    return None


@functools.lru_cache(maxsize=4096)
def _regrouped(shape: Shape, new: Shape) -> Places:
    """The axes of an array after a reshape: runs of old and new ones with as many elements belong together."""
    places: dict[int, tuple[int, ...]] = {}
    old_axes = [axis for axis, size in enumerate(shape) if size != 1]
    new_axes = [axis for axis, size in enumerate(new) if size != 1]
    if 0 in shape:
        return places
    while old_axes:
        old, fresh = [old_axes.pop(0)], [new_axes.pop(0)]
        while (have := math.prod(shape[a] for a in old)) != (want := math.prod(new[a] for a in fresh)):
            if have < want:
                old.append(old_axes.pop(0))
            else:
                fresh.append(new_axes.pop(0))
        places |= dict.fromkeys(old, tuple(fresh))
    return places


def steps_of(name: str, params: Mapping[str, Any], shape: Shape, new: Shape) -> View | None:
    """A primitive with one operand as steps; None if it mixes elements."""
    match name:
        case "transpose":
            return (Step("transpose", tuple(params["permutation"])),)
        case "rev":
            return (Step("rev", tuple(params["dimensions"])),)
        case "reshape" | "squeeze" | "expand_dims":
            order = _read_order(name, params)
            return (*((Step("transpose", order),) if order else ()), Step("reshape", new))
        case "slice":
            strides = params["strides"] or (1,) * len(shape)
            parts = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
            return (Step("slice", tuple(tuple(map(int, part)) for part in parts)),)
    return None


def _read_order(name: str, params: Mapping[str, Any]) -> tuple[int, ...] | None:
    """In which order a reshape reads the axes, where it is not their own: as of a convolution under jax.vmap."""
    order = params.get("dimensions") if name == "reshape" else None
    return None if order is None else tuple(order)


def follow(view: View, array: np.ndarray) -> np.ndarray:
    """The array after all steps of a view."""
    return functools.reduce(lambda array, step: step(array), view, array)
