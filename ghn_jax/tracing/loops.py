"""Loops over stacks: what a `scan` of a jaxpr says of itself, in whichever way the installed jax writes it, what its
turns see of a stack, and what a stack is that they make.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jax.extend import core

from ghn_jax.graphs.graph import Shape
from ghn_jax.tracing.builder import GraphBuilder, Held
from ghn_jax.tracing.contraction import settled
from ghn_jax.tracing.statics import MOST_NUMBERS, joined
from ghn_jax.tracing.values import Activation, Constant, Leaf, Statistics, Value, Weight, parameter
from ghn_jax.tracing.views import Step

T = TypeVar("T")


class Loop(NamedTuple):
    """A scan: `length` times its body, whose operands are constants, what is carried, and a row of each stack.

    Attributes:
      order: of the rows.
      consts, carried: numbers of operands; what is left are the stacks.
    """

    body: core.ClosedJaxpr
    order: Sequence[int]
    consts: int
    carried: int

    def operands(self, values: Sequence[T]) -> tuple[Sequence[T], Sequence[T], Sequence[T]]:
        """Values of all operands, or of what the body takes, by kind: constants, what is carried, stacks."""
        end = self.consts + self.carried
        return values[: self.consts], values[self.consts : end], values[end:]

    def results(self, values: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
        """Values of results by kind: what is carried, rows."""
        return values[: self.carried], values[self.carried :]


def loop_of(equation: core.JaxprEqn) -> Loop:
    """The loop of a scan."""
    params = equation.params
    if "num_consts" in params:
        consts, carried = params["num_consts"], params["num_carry"]
    else:  # from jax 0.11 on: trees of nothing, for each kind of operand
        consts, carried, _ = (len(kind) for kind in params["ft_in"].unpack())
    order = range(params["length"])
    return Loop(params["jaxpr"], order[::-1] if params["reverse"] else order, consts, carried)


def telling_turns(order: Sequence[int], held: Mapping[int, frozenset[Held]]) -> list[int]:
    """Of turns, given the parameters that layers hold in each, the last, and those with others than later ones.

    So each layer of a stack counts, but of one that is run on many images, or on the steps of a sequence, one turn.
    """
    turns, later = [], frozenset[Held]()
    for i in reversed(order):
        if not turns or held[i] - later:
            turns.append(i)
        later |= held[i]
    return turns


def restacked(builder: GraphBuilder, rows: Sequence[Value], turns: Sequence[int], shape: Shape) -> Value:
    """The stack, of this shape, of what all turns made; of activations those of the telling turns count."""
    maps = [row for i in turns if isinstance(row := rows[i], Activation)]
    if maps:
        if len(maps) > 1:
            sources = frozenset[int]().union(*(settled(builder, x).sources for x in maps))
            maps = [Activation(sources, features=maps[0].features)]
        return maps[0].moved({axis: (axis + 1,) for axis in range(len(shape) - 1)}, shape)
    if any(isinstance(row, Weight) for row in rows):
        return _joined_rows(rows, shape)
    numbers = [row.value for row in rows if isinstance(row, Constant) and row.value is not None]
    known = len(numbers) == len(rows) and np.size(numbers) <= MOST_NUMBERS
    return Constant(value=np.stack(numbers) if known else None)


def _joined_rows(rows: Sequence[Value], shape: Shape) -> Value:
    """Parameters on top of each other."""
    one = (1, *shape[1:])
    flat = [
        row._replace(
            views={
                leaf: None if view is None else (*view, Step("reshape", one))
                for leaf, view in row.views.items()
            },
            axes=frozenset(axis + 1 for axis in row.axes),
        )
        if isinstance(row, Weight)
        else row
        for row in rows
    ]
    return joined(0, flat, [one] * len(rows), shape)


def unstacked(value: Value, i: int, shape: Shape) -> Value:
    """The row of a stack that a turn sees, of this shape."""
    if isinstance(value, Activation):
        row = value.moved({0: (), **{axis + 1: (axis,) for axis in range(len(shape))}}, shape)
        return row._replace(features=None) if value.features and 0 in value.features else row
    if isinstance(value, Constant):
        known = None if value.value is None else value.value[i]
        return Constant(_unstacked_statistics(value.statistics, i), known)
    leaves = list(value.views)
    if len(leaves) == 1 and value.views[leaves[0]] == ():
        (leaf,) = leaves
        return parameter(Leaf(leaf.index, (*leaf.place, i)), shape)
    cut = (
        Step("slice", ((i, i + 1, 1), *((0, size, 1) for size in shape))),
        Step("reshape", shape),
    )
    views = {leaf: None if view is None else (*view, *cut) for leaf, view in value.views.items()}
    axes = frozenset(axis - 1 for axis in value.axes if axis > 0)
    return value._replace(views=views, axes=axes, statistics=_unstacked_statistics(value.statistics, i))


def _unstacked_statistics(statistics: Statistics, i: int) -> Statistics:
    """State that is stacked whole, layer by layer, is that of one layer."""
    axes = {}
    for leaf, old in statistics.axes.items():
        if old is not None and old[:1] in (((0,),), ((),)):
            rest = tuple(tuple(axis - 1 for axis in part) for part in old[1:])
            axes[Leaf(leaf.index, (*leaf.place, i))] = rest
        else:
            axes[leaf] = None
    roots = frozenset(leaf for leaf in axes if any(leaf.index == root.index for root in statistics.roots))
    return statistics._replace(axes=axes, roots=roots)
