"""Traces models of any kind: Flax Linen, Flax NNX, or a function of parameters and input.

Nothing is computed or allocated: models are traced on abstract arrays, in evaluation mode.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.core.scope import Scope
from jax.extend import core

from ghn_jax.graphs.graph import Shape
from ghn_jax.tracing.builder import Extracted
from ghn_jax.tracing.values import Activation, Constant, Leaf, Value, parameter
from ghn_jax.tracing.walk import UnsupportedModel, extract

_EVALUATION = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
}
"""What arguments of a model's call are in evaluation."""


class Function(NamedTuple):
    """A model that is a function.

    Attributes:
      apply: the function (parameters, images) -> logits, in evaluation mode.
      params: its tree of parameters; arrays, or jax.ShapeDtypeStructs if all can be predicted.
    """

    apply: Callable[[Any, Any], Any]
    params: Any


class Traced(NamedTuple):
    """A traced model.

    Attributes:
      jaxpr: the traced function.
      inputs: what each input of it is.
      output: which output are the logits.
      defined: outputs that are parameters or state.
      names: of the leaves of the tree of parameters, such as "Dense_0.kernel".
      leaves: their shapes and dtypes.
      logits: shape of the logits.
      initial: the model's own values of some leaves, by index.
      rebuild: makes what the user gets of all leaves.
    """

    jaxpr: core.ClosedJaxpr
    inputs: list[Value]
    output: int
    defined: dict[int, Value]
    names: list[str]
    leaves: list[jax.ShapeDtypeStruct]
    logits: Shape
    initial: Callable[[Sequence[int]], dict[int, Any]]
    rebuild: Callable[[Sequence[Any]], Any]

    def extract(self) -> Extracted:
        """The graph; raises UnsupportedModel."""
        shapes = [leaf.shape for leaf in self.leaves]
        return extract(self.jaxpr, self.inputs, self.output, self.names, shapes, self.defined)


def trace(model: Any, sample_input: Any, seed: int = 0) -> Traced:
    """Traces a model on images like `sample_input`, an array or its jax.ShapeDtypeStruct, batch axis first.

    Raises UnsupportedModel for what is no model, for one that cannot be traced on this input, that has no
    parameters, or whose output is no batch of logits.
    """
    images = jax.ShapeDtypeStruct(np.shape(sample_input), getattr(sample_input, "dtype", jnp.float32))
    if len(images.shape) < 2:
        raise UnsupportedModel(
            f"`sample_input` of shape {images.shape} is no batch of images: give (batch, height, width, channel)"
        )
    try:
        if isinstance(model, nn.Module):
            traced = _trace_linen(model, images, seed)
        elif isinstance(model, nnx.Module):
            traced = _trace_nnx(model, images)
        elif isinstance(model, tuple) and len(model) == 2 and callable(model[0]):
            traced = _trace_function(Function(*model), images)
        else:
            raise UnsupportedModel(
                f"`model` (a {type(model).__name__}) is no Flax module: wrap it as ghn_jax.Function(apply, params)"
            )
    except UnsupportedModel:
        raise
    except Exception as error:  # whatever the model raises
        first_line = str(error).strip().partition("\n")[0]
        raise UnsupportedModel(
            f"`model` cannot be traced on `sample_input` of shape {images.shape} "
            f"({type(error).__name__}: {first_line}): check the input's axes, and what the model does with values"
        ) from error
    if not traced.leaves:
        raise UnsupportedModel("`model` has no parameters: there is nothing to predict")
    if len(traced.logits) != 2 or traced.logits[0] != images.shape[0]:
        raise UnsupportedModel(
            f"`model`'s output has shape {traced.logits} for `sample_input` of shape {images.shape}: "
            "a classifier returns (batch, label)"
        )
    return traced


def _trace_linen(model: nn.Module, images: jax.ShapeDtypeStruct, seed: int) -> Traced:
    """Traces initialisation and forward pass at once: what is returned as a parameter is one, wherever it is made."""
    keywords = _evaluation_keywords(type(model).__call__)

    def forward(model: nn.Module, x: jax.Array) -> Any:
        assert model.scope is not None
        model.scope.__class__ = _BlankParameters
        return model(x, **keywords)  # pyright: ignore[reportCallIssue]

    def run(key: jax.Array, x: jax.Array) -> Any:
        return nn.init_with_output(forward, model)({"params": key, "dropout": key}, x)

    key = jax.random.key(seed)
    jaxpr, shapes = jax.make_jaxpr(run, return_shape=True)(key, images)
    outputs, variables = shapes
    params, others = variables.get("params", {}), {k: v for k, v in variables.items() if k != "params"}
    places = jax.tree.unflatten(jax.tree.structure(shapes), range(len(jax.tree.leaves(shapes))))
    own = jax.tree.leaves(places[1].get("params", {}))
    state = jax.tree.leaves({k: v for k, v in places[1].items() if k != "params"})
    paths, tree = jax.tree.flatten_with_path(params)
    defined: dict[int, Value] = dict.fromkeys(state, Constant(state=True))
    defined |= {
        place: parameter(Leaf(i), leaf.shape)
        for i, (place, (_, leaf)) in enumerate(zip(own, paths, strict=True))
    }
    output, logits = _logits(outputs)

    def initial(indices: Sequence[int]) -> dict[int, Any]:
        @jax.jit
        def initialise(key: jax.Array, x: jax.Array) -> list[jax.Array]:
            variables = model.init({"params": key, "dropout": key}, x, **keywords)  # pyright: ignore
            leaves = jax.tree.leaves(variables["params"])
            return [leaves[i] for i in indices]

        return dict(zip(indices, initialise(key, jnp.zeros(images.shape, images.dtype)), strict=True))

    def rebuild(leaves: Sequence[Any]) -> Any:
        rest = _outputs(jaxpr, state, key, images)
        return {
            "params": jax.tree.unflatten(tree, leaves),
            **jax.tree.unflatten(jax.tree.structure(others), rest),
        }

    values: list[Value] = [Constant(), Activation(frozenset([0]))]
    return Traced(
        jaxpr,
        values,
        output,
        defined,
        [_name(p) for p, _ in paths],
        [x for _, x in paths],
        logits,
        initial,
        rebuild,
    )


_INITIALISERS = {
    initialiser.__module__ for initialiser in (jax.nn.initializers.zeros, jax.nn.initializers.lecun_normal())
}


class _BlankParameters(Scope):
    """A scope where JAX's own initialisers are not run, nor traced, which takes longer than all the rest of a model."""

    def push(self, *args: Any, **kwargs: Any) -> Scope:
        child = super().push(*args, **kwargs)
        child.__class__ = _BlankParameters
        return child

    def param(self, name: str, init_fn: Any, *init_args: Any, **kwargs: Any) -> Any:
        known = getattr(init_fn, "__module__", None) in _INITIALISERS and kwargs.keys() <= {"unbox"}
        if not known or not init_args or self.has_variable("params", name):
            return super().param(name, init_fn, *init_args, **kwargs)
        self.reserve(name, "params")
        shape, dtype = (*init_args, jnp.float32)[:2]
        self.put_variable("params", name, jax.lax.full(shape, 0, dtype))
        return self.get_variable("params", name)


def _trace_nnx(model: nnx.Module, images: jax.ShapeDtypeStruct) -> Traced:
    definition, params, others = nnx.split(model, nnx.Param, ...)

    def apply(params: Any, x: Any) -> Any:
        merged = nnx.merge(definition, params, jax.tree.map(lambda x: x, others))  # new, to be changed here
        merged.eval()
        return merged(x, **_evaluation_keywords(type(merged).__call__))

    traced = _trace_function(Function(apply, params), images)

    def rebuild(leaves: Sequence[Any]) -> Any:
        return nnx.merge(definition, traced.rebuild(leaves), others)

    return traced._replace(rebuild=rebuild)


def _trace_function(model: Function, images: jax.ShapeDtypeStruct) -> Traced:
    apply, params = model
    paths, tree = jax.tree.flatten_with_path(params)
    leaves = [jax.ShapeDtypeStruct(np.shape(x), x.dtype) for _, x in paths]
    jaxpr, shapes = jax.make_jaxpr(apply, return_shape=True)(jax.tree.unflatten(tree, leaves), images)
    output, logits = _logits(shapes)
    values: list[Value] = [parameter(Leaf(i), leaf.shape) for i, leaf in enumerate(leaves)]

    def initial(indices: Sequence[int]) -> dict[int, Any]:
        own = {i: paths[i][1] for i in indices}
        for i, value in own.items():
            if isinstance(value, jax.ShapeDtypeStruct):
                raise UnsupportedModel(
                    f"parameter {_name(paths[i][0])!r} cannot be predicted, and `model.params` is abstract: "
                    "give parameters with values"
                )
        return own

    def rebuild(leaves: Sequence[Any]) -> Any:
        return jax.tree.unflatten(tree, leaves)

    values.append(Activation(frozenset([0])))
    return Traced(jaxpr, values, output, {}, [_name(p) for p, _ in paths], leaves, logits, initial, rebuild)


def _evaluation_keywords(call: Callable[..., Any]) -> dict[str, bool]:
    """Values of the arguments that say whether a model is in training, where it would be by default."""
    parameters = inspect.signature(call).parameters.values()
    wanted = {p: _EVALUATION[p.name] for p in parameters if p.name in _EVALUATION}
    return {p.name: value for p, value in wanted.items() if p.default is not value}


def _logits(outputs: Any) -> tuple[int, Shape]:
    """Which output are the logits: the first one with two axes, as auxiliary outputs follow; and its shape."""
    leaves = jax.tree.leaves(outputs)
    place = next((i for i, leaf in enumerate(leaves) if len(leaf.shape) == 2), 0)
    return place, tuple(leaves[place].shape) if leaves else ()


def _name(path: Any) -> str:
    """A leaf's path, such as "layers.0.kernel"."""
    parts = (getattr(part, "key", getattr(part, "idx", getattr(part, "name", part))) for part in path)
    return ".".join(str(part) for part in parts).removesuffix(".value")


def _outputs(
    jaxpr: core.ClosedJaxpr, places: Sequence[int], key: jax.Array, images: jax.ShapeDtypeStruct
) -> list[Any]:
    """Computes some of a model's initial state; in NumPy where they are mere fills, so that nothing is compiled."""
    made_by = {var: equation for equation in jaxpr.jaxpr.eqns for var in equation.outvars}
    values: dict[int, Any] = {}
    for place in places:
        equation = made_by.get(jaxpr.jaxpr.outvars[place])  # pyright: ignore[reportArgumentType]
        if equation is not None and equation.primitive.name == "broadcast_in_dim":
            (operand, *_), aval = equation.invars, equation.outvars[0].aval
            if isinstance(operand, core.Literal):
                values[place] = np.full(aval.shape, operand.val, aval.dtype)  # pyright: ignore
    rest = [place for place in places if place not in values]
    if rest:
        run = jax.jit(lambda *inputs: [core.jaxpr_as_fun(jaxpr)(*inputs)[place] for place in rest])
        values |= dict(zip(rest, run(key, jnp.zeros(images.shape, images.dtype)), strict=True))
    return [values[place] for place in places]
