"""Runs a traced model with the statistics of a batch in place of the running statistics of its norms.

The model's own equations are run, in order, on arrays. What depends on running statistics waits: it is computed where a
map meets it, from the statistics of that map. Which state is the mean or variance of a norm was found by
`ghn_jax.tracing.walk`, whoever wrote the norm.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array

from ghn_jax.tracing.errors import UnsupportedModel
from ghn_jax.tracing.loops import loop_of
from ghn_jax.tracing.masks import MASKED
from ghn_jax.tracing.statics import shape_of, static
from ghn_jax.tracing.values import Constant, Leaf, Norm, state
from ghn_jax.tracing.walk import CALLS, Constants, body_of, read, unstacked

Pair = tuple[Leaf | None, Leaf]
"""The running mean, if there is one, and variance of a norm."""


@dataclasses.dataclass(frozen=True)
class Map:
    """An array that depends on the images.

    Attributes:
      value: the array.
      pair: the norm whose statistics it was last computed with, if nothing but arithmetic followed.
      divided: whether it was divided by the deviation already.
      mask: which of its elements count, where a norm is told so.
    """

    value: Array
    pair: Pair | None = None
    divided: bool = False
    mask: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Late:
    """An array that depends on running statistics: computed where it meets a map.

    Attributes:
      known: which statistics, and along which axes.
      leaf: the state itself, if it is that, perhaps times a number.
      equation: else the equation whose only result it is, of `operands`.
    """

    known: Constant
    leaf: Leaf | None = None
    equation: core.JaxprEqn | None = None
    operands: tuple[Any, ...] = ()


class Rerun:
    """Runs jaxprs on arrays."""

    def __init__(self, norms: Sequence[Norm], constants: Constants, names: Sequence[str]):
        """Takes the norms that use running statistics, the arrays that the function closes over, and names of state."""
        self._constants, self._names = constants, names
        self._pairs: dict[Leaf, Pair] = {}
        for norm in norms:
            self._add(norm)
        self._places = {leaf.index for leaf in self._pairs}
        self._own: dict[int, Any] = {}  # the arrays of state themselves
        self._bound: dict[Leaf, Array] = {}
        self._computed: dict[int, Any] = {}
        self._factors: dict[Leaf, Any] = {}
        self.statistics: dict[Leaf, list[Array]] = {}
        """Of each running statistic the values that the batch gave it, one for each use."""

    def _add(self, norm: Norm) -> None:
        if norm.variance is None:
            raise UnsupportedModel(
                "a norm of `model` divides by a root of several arrays of state: give it one"
            )
        pair = (norm.mean, norm.variance)
        for leaf in pair:
            if leaf is not None and self._pairs.setdefault(leaf, pair) != pair:
                raise UnsupportedModel(
                    f"running statistic {self.name(leaf)!r} belongs to several norms, which have different batches"
                )

    def name(self, leaf: Leaf) -> str:
        """What an array of state is called."""
        if leaf.index < len(self._names):
            return leaf.name(self._names)
        return f"of shape {jnp.shape(self._constants.arrays[leaf.index - len(self._names)])} in `apply`"

    def state(self, index: int, array: Any) -> Any:
        """An array of state as an operand."""
        if index not in self._places:
            return array
        self._own[index] = array
        return Late(state(Leaf(index), jnp.shape(array), array.dtype), Leaf(index))

    def closed(self, jaxpr: core.ClosedJaxpr | core.Jaxpr, args: Sequence[Any]) -> list[Any]:
        """The outputs of a jaxpr."""
        consts: list[Any] = []
        if isinstance(jaxpr, core.ClosedJaxpr):
            consts = [self._constant(array) for array in jaxpr.consts]
            jaxpr = jaxpr.jaxpr
        env: dict[core.Var, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))
        for equation in jaxpr.eqns:
            operands = [atom.val if isinstance(atom, core.Literal) else env[atom] for atom in equation.invars]
            env.update(zip(equation.outvars, self._equation(equation, operands), strict=True))
        return [atom.val if isinstance(atom, core.Literal) else env[atom] for atom in jaxpr.outvars]

    def result(self, value: Any) -> Any:
        """An output as an array; running statistics that are given back are the model's own."""
        if isinstance(value, Late):
            return self._compute(value, own=True)
        return value.value if isinstance(value, Map) else value

    def _constant(self, array: Any) -> Any:
        index = self._constants.index(array)
        return array if index is None else self.state(index, array)

    def _equation(self, equation: core.JaxprEqn, operands: list[Any]) -> Sequence[Any]:
        name = equation.primitive.name
        late = [operand for operand in operands if isinstance(operand, Late)]
        if (
            name in CALLS
            and equation.params.get("name") != MASKED
            and (late or self._holds_state(body_of(equation)))
        ):
            return self.closed(body_of(equation), operands)
        if name == "scan" and (late or self._holds_state(equation.params["jaxpr"])):
            return self._scan(equation, operands)
        maps = [operand for operand in operands if isinstance(operand, Map)]
        if equation.params.get("name") == MASKED and isinstance(operands[0], Map):
            x, mask = operands
            return [dataclasses.replace(x, mask=mask.value if isinstance(mask, Map) else mask)]
        if not late:
            results = evaluate(equation, [x.value if isinstance(x, Map) else x for x in operands])
            if not maps:
                return results
            if len(maps) == 1 and name in _HANDED_ON:
                return [dataclasses.replace(maps[0], value=value) for value in results]
            return [Map(value) for value in results]
        if not maps:
            return [self._wait(equation, operands)]
        if name not in _ARITHMETIC or len(maps) != 1 or len(late) != 1:
            raise self._unsupported(late[0], f"meets a map in {name!r}")
        return [self._meet(equation, operands, maps[0], late[0])]

    def _wait(self, equation: core.JaxprEqn, operands: list[Any]) -> Late:
        """A result that depends on running statistics, and not on the images."""
        if len(equation.outvars) > 1:
            raise self._unsupported(next(x for x in operands if isinstance(x, Late)), "is cut in parts")
        known = [
            x.known
            if isinstance(x, Late)
            else read({}, atom)
            if isinstance(atom, core.Literal)
            else Constant()
            for x, atom in zip(operands, equation.invars, strict=True)
        ]
        (value,) = static(equation, known)
        assert isinstance(value, Constant)
        first, others = operands[0], operands[1:]
        if isinstance(first, Late) and first.leaf and _is_scaling(equation, others):
            factor = others[0] if equation.primitive.name == "mul" else 1 / others[0]
            self._factors[first.leaf] = factor * self._factors.get(first.leaf, 1.0)
            return dataclasses.replace(first, known=value)
        return Late(value, None, equation, tuple(operands))

    def _meet(self, equation: core.JaxprEqn, operands: list[Any], x: Map, late: Late) -> Map:
        """A map meets what depends on running statistics: those of the map, unless it is normalised already."""
        known = late.known.statistics
        pairs = {self._pairs[leaf] for leaf in known.axes if leaf in self._pairs}
        if len(pairs) != 1:
            raise self._unsupported(late, "meets others before a map")
        (pair,) = pairs
        divides = equation.primitive.name in ("mul", "div") and bool(known.roots)
        if divides:
            is_new = x.pair != pair or x.divided
        else:
            is_new = not known.roots
            if known.roots and x.pair != pair:
                raise self._unsupported(late, "is added to a map that it does not normalise")
        if is_new:
            self._bind(pair, x, late)
        value = self._compute(late)
        (result,) = evaluate(equation, [value if y is late else y.value if y is x else y for y in operands])
        return Map(result, pair, divided=divides or (x.divided and not is_new))

    def _bind(self, pair: Pair, x: Map, late: Late) -> None:
        """Gives running statistics the values that this map has."""
        mean_leaf, variance_leaf = pair
        axes = next((a for leaf, a in late.known.statistics.axes.items() if leaf in pair), None)
        if axes is None:
            raise self._unsupported(late, "is taken in parts, or mixed")
        kept = [axis for part in axes for axis in part]
        others = tuple(axis for axis in range(x.value.ndim) if axis not in kept)
        wide = x.value.astype(jnp.promote_types(x.value.dtype, jnp.float32))
        mean = wide.mean(others, keepdims=True, where=x.mask)
        squares = jnp.square(wide if mean_leaf is None else wide - mean)
        variance = squares.mean(others, keepdims=True, where=x.mask)
        for leaf, statistic in ((mean_leaf, mean), (variance_leaf, variance)):
            if leaf is None:
                continue
            own = self._own[leaf.index]
            shape = jnp.shape(own)[len(leaf.place) :]
            ordered = jnp.transpose(statistic, (*kept, *others))
            if math.prod(shape) != ordered.size:
                raise self._unsupported(
                    late, f"is of shape {shape}, unlike the statistics {ordered.shape} of its map"
                )
            value = ordered.reshape(shape).astype(own.dtype)
            self._bound[leaf] = value
            self.statistics.setdefault(leaf, []).append(value / self._factors.get(leaf, 1.0))
        self._computed.clear()

    def _compute(self, late: Any, own: bool = False) -> Any:
        """The array, by the statistics of the last batch, or by the model's own."""
        if not isinstance(late, Late):
            return late
        if own and late.leaf is not None:
            array = self._own[late.leaf.index][late.leaf.place]
            return array
        if late.leaf is not None:
            if late.leaf not in self._bound:
                raise self._unsupported(late, "is used before any map that it normalises")
            return self._bound[late.leaf]
        if own or id(late) not in self._computed:
            assert late.equation
            (value,) = evaluate(late.equation, [self._compute(x, own) for x in late.operands])
            if own:
                return value
            self._computed[id(late)] = value
        return self._computed[id(late)]

    def _scan(self, equation: core.JaxprEqn, operands: list[Any]) -> list[Any]:
        """Unrolls a loop in which there are norms."""
        loop = loop_of(equation)
        consts, carry, stacked = loop.operands(operands)
        *_, variables = loop.operands(loop.body.jaxpr.invars)
        rows: list[tuple[int, Sequence[Any]]] = []
        for i in loop.order:
            slices = [self._row(x, i, var) for x, var in zip(stacked, variables, strict=True)]
            carry, row = loop.results(self.closed(loop.body, [*consts, *carry, *slices]))
            rows.append((i, row))
        rows.sort(key=lambda row: row[0])
        results = []
        for column in zip(*(row for _, row in rows), strict=True):
            array = jnp.stack([self.result(value) for value in column])
            results.append(Map(array) if any(isinstance(value, Map) for value in column) else array)
        return [*carry, *results]

    def _row(self, x: Any, i: int, var: core.Var) -> Any:
        if isinstance(x, Map):
            return Map(x.value[i])
        if not isinstance(x, Late):
            return x[i]
        if x.leaf is None:
            raise self._unsupported(x, "is changed before a loop over layers")
        known = unstacked(x.known, i, shape_of(var))
        assert isinstance(known, Constant)
        leaf = Leaf(x.leaf.index, (*x.leaf.place, i))
        return Late(known, leaf)

    def _holds_state(self, jaxpr: core.ClosedJaxpr | core.Jaxpr) -> bool:
        """Whether running statistics are among the arrays that a function inside closes over."""
        if isinstance(jaxpr, core.ClosedJaxpr):
            if any(self._constants.index(array) in self._places for array in jaxpr.consts):
                return True
            jaxpr = jaxpr.jaxpr
        bodies = [value for equation in jaxpr.eqns for value in equation.params.values()]
        return any(self._holds_state(x) for x in bodies if isinstance(x, core.ClosedJaxpr | core.Jaxpr))

    def _unsupported(self, late: Late, what: str) -> UnsupportedModel:
        names = " and ".join(repr(self.name(leaf)) for leaf in sorted(late.known.statistics.axes))
        return UnsupportedModel(
            f"statistics of a batch cannot take the place of running statistic {names}: it {what}"
        )


def evaluate(equation: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    """The results of an equation."""
    with equation.ctx.manager:
        params = equation.primitive.get_bind_params(equation.params)
        results = equation.primitive.bind(*values, **params)
    return results if equation.primitive.multiple_results else [results]


def _is_scaling(equation: core.JaxprEqn, others: Sequence[Any]) -> bool:
    """Whether state is multiplied with, or divided by, a number: as where a moving average makes up for its start."""
    if equation.primitive.name not in ("mul", "div"):
        return False
    return not isinstance(others[0], Late) and jnp.size(others[0]) == 1


_ARITHMETIC = frozenset({"add", "add_any", "sub", "mul", "div"})
_HANDED_ON = _ARITHMETIC | {
    "convert_element_type",
    "copy",
    "reshape",
    "transpose",
    "broadcast_in_dim",
    "squeeze",
    "expand_dims",
    "reduce_precision",
}
"""What may lie between the parts of a norm."""
