"""Finds the graph of a network by running its jaxpr on abstract values.

One pass over the equations, in order. Calls are walked inside, loops over stacked layers are unrolled, and for
each primitive a rule (`ghn_jax.tracing.rules`) says which node it adds, if any: only weights, norms, pools, sums,
concatenations, attention and squeeze-excitation are nodes; all else hands on the nodes that its operands come from.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core

from ghn_jax.tracing import rules
from ghn_jax.tracing.arithmetic import StatisticInTree
from ghn_jax.tracing.builder import Extracted, GraphBuilder, Held
from ghn_jax.tracing.contraction import contracted, settled
from ghn_jax.tracing.errors import UnsupportedModel
from ghn_jax.tracing.loops import loop_of, restacked, telling_turns, unstacked
from ghn_jax.tracing.statics import MOST_NUMBERS, function_of_elements, shape_of
from ghn_jax.tracing.values import (
    Activation,
    Constant,
    Leaf,
    Norm,
    Value,
    Weight,
    state,
)

Known = Mapping[core.Var, Value]


class Output(NamedTuple):
    """An output of a model that may be its logits.

    Attributes:
      place: which output of the traced function it is.
      labels: its last axis.
    """

    place: int
    labels: int


class Constants:
    """Arrays that a traced function closes over, as further leaves of its state."""

    def __init__(self, first: int):
        """`first` is the index of the first of them."""
        self._first = first
        self._places: dict[int, int] = {}
        self.arrays: list[Any] = []

    def leaf(self, array: Any) -> Leaf:
        """An array as a leaf; the same one is the same leaf."""
        if id(array) not in self._places:
            self._places[id(array)] = self._first + len(self.arrays)
            self.arrays.append(array)
        return Leaf(self._places[id(array)])

    def index(self, array: Any) -> int | None:
        """Which leaf an array is; None if it is none."""
        return self._places.get(id(array))


class Walked(NamedTuple):
    """What is found of a traced network.

    Attributes:
      extracted: its graph.
      output: which of its outputs are the logits; None if all outputs count.
      labels: number of classes that the logits have.
      norms: those that use running statistics: leaves of its state or of `constants`.
      constants: arrays that the traced function closes over; as leaves of state, they come after its own.
      met: state that is added to a map, or multiplied with one.
    """

    extracted: Extracted
    output: int | None
    labels: int | None
    norms: tuple[Norm, ...]
    constants: Constants
    met: frozenset[Leaf]


def walk(
    jaxpr: core.ClosedJaxpr,
    inputs: Sequence[Value],
    outputs: Sequence[Output] | None,
    names: Sequence[str],
    leaves: Sequence[jax.ShapeDtypeStruct],
    defined: Mapping[int, Value],
    num_states: int,
) -> Walked:
    """Finds the graph of a traced network.

    Args:
      jaxpr: the traced function.
      inputs: what each of its inputs is.
      outputs: what may be the logits: of several, one that ends in a classification layer. None for a network
        without such a layer, all of whose outputs count.
      names, leaves: of the tree of parameters.
      defined: what some outputs are known to be: a function that makes its own parameters returns them.
      num_states: number of leaves of its state.

    Raises UnsupportedModel where parameters are used in ways that no graph describes.
    """
    builder, constants = GraphBuilder(names, leaves), Constants(num_states)
    results = _Walk(builder, constants).closed(jaxpr, inputs, known_outputs(jaxpr.jaxpr, defined))
    norms = tuple(norm for norm in builder.norms if not norm.is_of_data)
    met = frozenset(builder.met)
    if outputs is None:
        others = [value for place, value in enumerate(results) if place not in defined]
        ends = [settled(builder, value).sources for value in others if isinstance(value, Activation)]
        if not ends:
            raise UnsupportedModel("`model`'s outputs do not depend on its input: give a network")
        return Walked(builder.finish(frozenset[int]().union(*ends), None), None, None, norms, constants, met)
    found: list[tuple[int, Output, frozenset[int]]] = []
    for output in outputs:
        logits = results[output.place]
        if isinstance(logits, Activation):
            sources = settled(builder, logits).sources
            heads = builder.heads(sources, output.labels)
            found.append((2 if heads.at_end else 1 if heads.nodes else 0, output, sources))
    if not found:
        raise UnsupportedModel(
            "`model`'s output does not depend on its input: give a network that classifies"
        )
    _, output, sources = max(found, key=lambda entry: entry[0])
    others = frozenset[int]().union(
        *(
            settled(builder, value).sources
            for place, value in enumerate(results)
            if place != output.place and place not in defined and isinstance(value, Activation)
        )
    )
    extracted = builder.finish(sources, output.labels, others)
    return Walked(extracted, output.place, output.labels, norms, constants, met)


class _Walk:
    """Runs jaxprs on abstract values."""

    def __init__(self, builder: GraphBuilder, constants: Constants):
        self.builder, self.constants = builder, constants

    def closed(
        self, jaxpr: core.ClosedJaxpr | core.Jaxpr, args: Sequence[Value], known: Known
    ) -> list[Value]:
        """The outputs of a jaxpr."""
        consts: list[Value] = []
        if isinstance(jaxpr, core.ClosedJaxpr):
            consts = [constant(self.constants, array) for array in jaxpr.consts]
            jaxpr = jaxpr.jaxpr
        env: dict[core.Var, Value] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))
        env.update(known)
        for equation in jaxpr.eqns:
            operands = [read(env, atom) for atom in equation.invars]
            results = self._equation(equation, operands, known)
            for var, result in zip(equation.outvars, results, strict=True):
                if var not in known:
                    env[var] = result
        return [read(env, atom) for atom in jaxpr.outvars]

    def _equation(self, equation: core.JaxprEqn, operands: list[Value], known: Known) -> Sequence[Value]:
        name, count = equation.primitive.name, len(equation.outvars)
        inside = {i: known[var] for i, var in enumerate(equation.outvars) if var in known}
        if len(inside) == count:
            return list(inside.values())
        if name in CALLS or name in ("scan", "cond", "while", "shard_map"):
            if all(_is_idle(value) for value in operands):
                return [Constant()] * count  # of known outputs, nothing else is to be learned
            if name == "scan":
                return self._scan(equation, operands, inside)
            if name == "cond":
                return self._cond(equation, operands, inside)
            if name == "while":
                self._refuse_weights(operands, "a while loop", "use a Python loop or jax.lax.scan")
                return [contracted(self.builder, operands, "while")] * count
            if equation.params.get("name") == "softplus" and isinstance(operands[0], Weight):
                return [function_of_elements("softplus", operands[0])]
            body = body_of(equation)
            if name == "shard_map":
                self._check_shards(equation, operands, open_jaxpr(body))
            return self.closed(body, operands, known_outputs(open_jaxpr(body), inside))
        try:
            return rules.apply(self.builder, equation, operands)
        except StatisticInTree as error:
            raise UnsupportedModel(
                f"parameter {self.builder.name(error.args[0])!r} is used as a running variance, which is no "
                "parameter: give running statistics apart, as ghn_jax.Function(apply, params, state) with "
                "apply(params, state, images)"
            ) from None

    def _scan(
        self, equation: core.JaxprEqn, operands: list[Value], inside: Mapping[int, Value]
    ) -> list[Value]:
        """Unrolls a loop: a stacked parameter is one parameter per iteration."""
        loop = loop_of(equation)
        consts, carry, stacked = loop.operands(operands)
        *_, rows = loop.operands(loop.body.jaxpr.invars)
        found: dict[int, Sequence[Value]] = {}
        held: dict[int, frozenset[Held]] = {}
        for i in loop.order:
            slices = [unstacked(value, i, shape_of(var)) for value, var in zip(stacked, rows, strict=True)]
            defined = {
                place: unstacked(value, i, shape_of(loop.body.jaxpr.outvars[place]))
                for place, value in inside.items()
                if place >= loop.carried
            }
            claims = self.builder.num_claims
            outputs = self.closed(
                loop.body, [*consts, *carry, *slices], known_outputs(loop.body.jaxpr, defined)
            )
            carry, found[i] = loop.results(outputs)
            held[i] = self.builder.held_since(claims)
        if not found:  # no turn at all
            return [*carry, *[Constant()] * (len(equation.outvars) - loop.carried)]
        turns = telling_turns(loop.order, held)
        columns = zip(*(found[i] for i in range(len(found))), strict=True)
        results = [
            restacked(self.builder, column, turns, shape_of(var))
            for column, var in zip(columns, equation.outvars[loop.carried :], strict=True)
        ]
        return [*carry, *results]

    def _cond(
        self, equation: core.JaxprEqn, operands: list[Value], inside: Mapping[int, Value]
    ) -> Sequence[Value]:
        """Branches that agree are walked once, as is one that is known; others may hold no parameters."""
        branches, which = equation.params["branches"], operands[0]
        number = 0
        if isinstance(which, Constant) and which.value is not None:
            number = min(max(int(which.value), 0), len(branches) - 1)
        elif len({str(branch) for branch in branches}) > 1:
            self._refuse_weights(operands, "a conditional", "decide in Python")
            return [contracted(self.builder, operands, "cond")] * len(equation.outvars)
        branch = branches[number]
        return self.closed(branch, operands[1:], known_outputs(branch.jaxpr, inside))

    def _check_shards(self, equation: core.JaxprEqn, operands: Sequence[Value], body: core.Jaxpr) -> None:
        """A parameter that is cut into shards is more than what the layer inside sees."""
        for value, atom, var in zip(operands, equation.invars, body.invars, strict=True):
            if isinstance(value, Weight) and shape_of(atom) != shape_of(var):
                self._refuse_weights([value], "a shard_map that cuts it", "replicate it, or use jax.jit")

    def _refuse_weights(self, operands: Sequence[Value], where: str, remedy: str) -> None:
        leaves = [leaf for value in operands if isinstance(value, Weight) for leaf in value.views]
        if leaves:
            raise UnsupportedModel(
                f"parameter {self.builder.name(leaves[0])!r} is used in {where}, whose graph cannot be known: "
                f"{remedy}"
            )


_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")
CALLS = frozenset(
    {
        "jit",
        "pjit",
        "closed_call",
        "core_call",
        "checkpoint",
        "remat",
        "remat2",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
    }
)


def body_of(equation: core.JaxprEqn) -> core.ClosedJaxpr | core.Jaxpr:
    """What a call runs."""
    return next(equation.params[key] for key in _BODIES if key in equation.params)


def open_jaxpr(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> core.Jaxpr:
    """A jaxpr without its constants."""
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def known_outputs(jaxpr: core.Jaxpr, defined: Mapping[int, Value]) -> dict[core.Var, Value]:
    """Variables that are known beforehand, as outputs of a jaxpr; a parameter copied into the state is one."""
    known: dict[core.Var, Value] = {}
    for place, value in defined.items():
        var = jaxpr.outvars[place]
        if isinstance(var, core.Var) and not isinstance(known.get(var), Weight):
            known[var] = value
    return known


def are_read(jaxpr: core.Jaxpr, places: Collection[int]) -> bool:
    """Whether something in a jaxpr is made of each of these outputs, and none is another output, or a constant, too."""
    outputs = Counter(var for var in jaxpr.outvars if isinstance(var, core.Var))
    unread: set[core.Var] = set()
    for var in (jaxpr.outvars[place] for place in places):
        if isinstance(var, core.Literal) or var in jaxpr.constvars or outputs[var] > 1:
            return False
        unread.add(var)
    for equation in jaxpr.eqns:
        unread.difference_update(var for var in equation.invars if isinstance(var, core.Var))
    for equation in jaxpr.eqns if unread else ():
        inside = [place for place, var in enumerate(equation.outvars) if var in unread]
        body = _inner(equation) if inside else None
        if body is not None and are_read(body, inside):
            unread.difference_update(equation.outvars)
    return not unread


def _inner(equation: core.JaxprEqn) -> core.Jaxpr | None:
    """What a call or loop runs, whose outputs are its own."""
    if equation.primitive.name == "scan":
        return loop_of(equation).body.jaxpr
    return open_jaxpr(body_of(equation)) if equation.primitive.name in CALLS else None


def constant(constants: Constants, array: Any) -> Constant:
    """An array that a function closes over; integers are known, as they may say which rows of a parameter are taken."""
    if not hasattr(array, "dtype") or jnp.issubdtype(array.dtype, jnp.floating):
        return state(constants.leaf(array), jnp.shape(array), jnp.result_type(array))
    is_known = jnp.issubdtype(array.dtype, jnp.integer) and not isinstance(array, Tracer)
    return Constant(value=np.asarray(array) if is_known and array.size <= MOST_NUMBERS else None)


def _is_idle(value: Value) -> bool:
    """Whether nothing is to be learned of what is made of a value."""
    return isinstance(value, Constant) and not value.statistics.axes and value.value is None


def read(env: Mapping[core.Var, Any], atom: Any) -> Any:
    """The value of a variable or literal."""
    return Constant(value=atom.val) if isinstance(atom, core.Literal) else env[atom]
