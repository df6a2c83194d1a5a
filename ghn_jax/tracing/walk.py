"""Finds the graph of a network by running its jaxpr on abstract values.

One pass over the equations, in order. Calls are walked inside, loops over stacked layers are unrolled, and for
each primitive a rule (`ghn_jax.tracing.rules`) says which node it adds, if any: only weights, norms, pools, sums,
concatenations, attention and squeeze-excitation are nodes; all else hands on the nodes that its operands come from.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.extend import core

from ghn_jax.graphs.graph import Shape
from ghn_jax.tracing import rules
from ghn_jax.tracing.builder import Extracted, GraphBuilder
from ghn_jax.tracing.contraction import constant, contracted, settled
from ghn_jax.tracing.values import CONSTANT, Activation, Constant, Leaf, Value, Weight, parameter

Known = Mapping[core.Var, Value]


class UnsupportedModel(ValueError):
    """The graph of a model cannot be found."""


def extract(
    jaxpr: core.ClosedJaxpr,
    inputs: Sequence[Value],
    output: int,
    names: Sequence[str],
    shapes: Sequence[Shape],
    defined: Mapping[int, Value] | None = None,
) -> Extracted:
    """The graph of a traced network.

    Args:
      jaxpr: the traced function.
      inputs: what each of its inputs is.
      output: which of its outputs are the logits.
      names, shapes: of the leaves of the tree of parameters.
      defined: what some outputs are known to be: a function that makes its own parameters returns them.

    Raises UnsupportedModel where parameters are used in ways that no graph describes.
    """
    walk = _Walk(GraphBuilder(names, shapes))
    known = _known_outputs(jaxpr.jaxpr, defined or {})
    outputs = walk.closed(jaxpr, inputs, known)
    logits = outputs[output]
    if not isinstance(logits, Activation):
        raise UnsupportedModel(
            "`model`'s output does not depend on its input: give a network that classifies"
        )
    return walk.builder.finish(settled(walk.builder, logits).sources)


class _Walk:
    """Runs jaxprs on abstract values."""

    def __init__(self, builder: GraphBuilder):
        self.builder = builder

    def closed(
        self, jaxpr: core.ClosedJaxpr | core.Jaxpr, args: Sequence[Value], known: Known
    ) -> list[Value]:
        """The outputs of a jaxpr."""
        consts: list[Value] = []
        if isinstance(jaxpr, core.ClosedJaxpr):
            consts = [Constant(state=jax.numpy.ndim(c) > 0) for c in jaxpr.consts]
            jaxpr = jaxpr.jaxpr
        env: dict[core.Var, Value] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))
        env.update(known)
        for equation in jaxpr.eqns:
            operands = [_read(env, atom) for atom in equation.invars]
            results = self._equation(equation, operands, known)
            for var, result in zip(equation.outvars, results, strict=True):
                if var not in known:
                    env[var] = result
        return [_read(env, atom) for atom in jaxpr.outvars]

    def _equation(self, equation: core.JaxprEqn, operands: list[Value], known: Known) -> Sequence[Value]:
        name, count = equation.primitive.name, len(equation.outvars)
        inside = {i: known[var] for i, var in enumerate(equation.outvars) if var in known}
        if all(isinstance(value, Constant) for value in operands):
            return [constant(name, operands)] * count  # of known outputs, nothing else is to be learned
        if name == "scan":
            return self._scan(equation, operands, inside)
        if name == "cond":
            return self._cond(equation, operands, inside)
        if name == "while":
            self._refuse_weights(operands, "a while loop", "use a Python loop or jax.lax.scan")
            return [contracted(self.builder, operands, "while")] * count
        if name in _CALLS:
            body = next(equation.params[key] for key in _BODIES if key in equation.params)
            return self.closed(body, operands, _known_outputs(_open(body), inside))
        try:
            results = rules.apply(self.builder, equation, operands)
        except rules.CutParameter as error:
            leaf = error.args[0]
            raise UnsupportedModel(
                f"parameter {self.builder.name(leaf)!r} reaches a convolution or linear layer in slices, each of "
                "which would be a layer of its own: make them parameters of their own"
            ) from None
        return results

    def _scan(
        self, equation: core.JaxprEqn, operands: list[Value], inside: Mapping[int, Value]
    ) -> list[Value]:
        """Unrolls a loop: a stacked parameter is one parameter per iteration."""
        params = equation.params
        consts_end = params["num_consts"]
        carry_end = consts_end + params["num_carry"]
        body, length = params["jaxpr"], params["length"]
        consts, carry, stacked = operands[:consts_end], operands[consts_end:carry_end], operands[carry_end:]
        outputs: list[Value] = []
        for i in reversed(range(length)) if params["reverse"] else range(length):
            slices = [
                _unstacked(value, i, var.aval.shape)
                for value, var in zip(stacked, body.jaxpr.invars[carry_end:], strict=True)
            ]
            defined = {
                place: _unstacked(value, i, _shape(body.jaxpr.outvars[place]))
                for place, value in inside.items()
                if place >= params["num_carry"]
            }
            outputs = self.closed(body, [*consts, *carry, *slices], _known_outputs(body.jaxpr, defined))
            carry = outputs[: params["num_carry"]]
        return [*carry, *outputs[params["num_carry"] :]]

    def _cond(
        self, equation: core.JaxprEqn, operands: list[Value], inside: Mapping[int, Value]
    ) -> Sequence[Value]:
        """Branches that agree are walked once; others may hold no parameters."""
        branches = equation.params["branches"]
        if len({str(branch) for branch in branches}) > 1:
            self._refuse_weights(operands, "a conditional", "decide in Python")
            return [contracted(self.builder, operands, "cond")] * len(equation.outvars)
        return self.closed(branches[0], operands[1:], _known_outputs(branches[0].jaxpr, inside))

    def _refuse_weights(self, operands: Sequence[Value], where: str, remedy: str) -> None:
        leaves = [leaf for value in operands if isinstance(value, Weight) for leaf in value.views]
        if leaves:
            raise UnsupportedModel(
                f"parameter {self.builder.name(leaves[0])!r} is used in {where}, whose graph depends on "
                f"values: {remedy}"
            )


_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_CALLS = frozenset(
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


def _open(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> core.Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def _known_outputs(jaxpr: core.Jaxpr, defined: Mapping[int, Value]) -> dict[core.Var, Value]:
    """Variables that are known beforehand, as outputs of a jaxpr."""
    outputs = jaxpr.outvars
    return {var: value for i, value in defined.items() if isinstance(var := outputs[i], core.Var)}


def _unstacked(value: Value, i: int, shape: tuple[int, ...]) -> Value:
    """The slice that an iteration sees."""
    if not isinstance(value, Weight):
        return value
    leaves = list(value.views)
    if len(leaves) == 1 and value.views[leaves[0]] == ():
        (leaf,) = leaves
        return parameter(Leaf(leaf.index, (*leaf.place, i)), shape)
    return value._replace(views=dict.fromkeys(value.views), cut=True)


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(atom.aval.shape)


def _read(env: Mapping[core.Var, Value], atom: Any) -> Value:
    return CONSTANT if isinstance(atom, core.Literal) else env[atom]
