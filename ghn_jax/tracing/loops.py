"""What a `scan` of a jaxpr says of itself, in whichever way the installed jax writes it."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from jax.extend import core

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
