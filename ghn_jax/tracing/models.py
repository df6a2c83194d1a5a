"""Traces models of any kind: Flax Linen, Flax NNX, or a function of parameters and input.

Nothing is computed or allocated: models are traced on abstract arrays, in evaluation mode.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend import core

from ghn_jax.runtime import origin
from ghn_jax.tracing import evaluation
from ghn_jax.tracing.arguments import check_images, check_model
from ghn_jax.tracing.blank import BlankParameters, GivenParameters, Initialising
from ghn_jax.tracing.builder import Extracted
from ghn_jax.tracing.errors import UnsupportedModel
from ghn_jax.tracing.outputs import find_outputs, leaf_name
from ghn_jax.tracing.values import Activation, Constant, Leaf, Value, parameter, state
from ghn_jax.tracing.walk import Output, Walked, are_read, walk


class Function(NamedTuple):
    """A model that is a function.

    Attributes:
      apply: the function (parameters, images) -> logits, in evaluation mode; (parameters, state, images) if there is
        a `state`.
      params: its tree of parameters; arrays, or jax.ShapeDtypeStructs if all can be predicted.
      state: its tree of running statistics and the like, if they are to be filled; else the function may hold them.
        Variables of such a model are {"params": ..., "state": ...}.
    """

    apply: Callable[..., Any]
    params: Any
    state: Any = None


class Traced(NamedTuple):
    """A traced model.

    Attributes:
      jaxpr: the traced function.
      inputs: what each input of it is.
      outputs: what may be the logits; None if all outputs count.
      defined: outputs that are parameters or state.
      names: of the leaves of the tree of parameters, such as "Dense_0.kernel".
      leaves: their shapes and dtypes.
      num_states: number of leaves of its state.
      initial: the model's own values of some leaves, by index.
      rebuild: makes what the user gets of all leaves.
    """

    jaxpr: core.ClosedJaxpr
    inputs: list[Value]
    outputs: list[Output] | None
    defined: dict[int, Value]
    names: list[str]
    leaves: list[jax.ShapeDtypeStruct]
    num_states: int
    initial: Callable[[Sequence[int]], dict[int, Any]]
    rebuild: Callable[[Sequence[Any]], Any]

    def walk(self) -> Walked:
        """Finds the graph and the norms; raises UnsupportedModel."""
        return walk(
            self.jaxpr, self.inputs, self.outputs, self.names, self.leaves, self.defined, self.num_states
        )

    def extract(self) -> Extracted:
        """The graph; raises UnsupportedModel."""
        return self.walk().extracted


def trace(
    model: Any, sample_input: Any, seed: int = 0, *, logits: str | None = None, headless: bool = False
) -> Traced:
    """Traces a model on images like `sample_input`, an array or its jax.ShapeDtypeStruct, batch axis first.

    Args:
      seed: of its own initialisation.
      logits: name of the output that are the logits, of several.
      headless: whether it has no classification layer, and outputs of any shape.

    Raises UnsupportedModel for what is no model, for one that cannot be traced on this input, that has no
    parameters, or whose output is no batch of logits.
    """
    images = check_images(sample_input)
    check_model(model, Function)
    find = _Outputs(images, logits, headless)
    try:
        if isinstance(model, nn.Module):
            traced = _trace_linen(model, images, seed, find)
        elif isinstance(model, nnx.Module):
            traced = _trace_nnx(model, images, find)
        else:
            traced = _trace_function(model, images, find)
    except UnsupportedModel:
        raise
    except Exception as error:  # whatever the model raises
        raise not_traceable(error, images) from error
    if not traced.leaves:
        raise UnsupportedModel("`model` has no parameters: there is nothing to predict")
    for name, leaf in zip(traced.names, traced.leaves, strict=True):
        if not math.prod(leaf.shape):
            where, remedy = "", "leave it out of the parameters"
            if isinstance(model, nn.Module):  # whose parameters are made for the images
                where = f", on images of shape {images.shape}"
                remedy = "its features may be empty there, give it larger images"
            raise UnsupportedModel(
                f"`model` has a parameter without elements, {name} {leaf.shape}{where}: {remedy}"
            )
    return traced


def not_traceable(error: Exception, images: Any) -> UnsupportedModel:
    """What to say of an error that a model raised."""
    return UnsupportedModel(
        f"`model` cannot be traced on images of shape {tuple(images.shape)} ({origin.described(error)}): check that it "
        "takes such images (to a command --image_size gives others), and what it does with values"
    )


class _Outputs(NamedTuple):
    """Which outputs may be the logits, once their shapes are known."""

    images: jax.ShapeDtypeStruct
    logits: str | None
    headless: bool

    def __call__(self, outputs: Any) -> list[Output] | None:
        if self.headless:
            return None
        return find_outputs(outputs, self.images, self.logits)


def _trace_linen(model: nn.Module, images: jax.ShapeDtypeStruct, seed: int, find: _Outputs) -> Traced:
    """Traces initialisation and forward pass at once: what is returned as a parameter is one, wherever it is made.

    Where that does not tell which parameter is used, or may be another pass than the model's own, the forward pass is
    traced again, with parameters given.
    """
    model = evaluation.linen_in_evaluation(model)
    keywords = evaluation.keywords(type(model).__call__)
    noted = Initialising()

    def forward(model: nn.Module, x: jax.Array) -> Any:
        assert model.scope is not None
        model.scope.__class__ = BlankParameters
        return model(x, **keywords)  # pyright: ignore[reportCallIssue]

    def noting(model: nn.Module, x: jax.Array) -> Any:
        assert model.scope is not None
        model.scope.flags = model.scope.flags.copy({"initializing": noted})
        return forward(model, x)

    def run(forward: Callable[..., Any], key: jax.Array, x: jax.Array) -> Any:
        return nn.init_with_output(forward, model)(evaluation.random_keys(key), x)

    def run_with(params: Any, others: Any, key: jax.Array, x: jax.Array) -> Any:
        variables, keys = {"params": params, **others}, evaluation.random_keys(key)
        return nn.apply(forward, model, mutable=True)(variables, x, rngs=keys)[0]

    key = jax.random.key(seed)
    try:
        jaxpr, shapes = jax.make_jaxpr(functools.partial(run, noting), return_shape=True)(key, images)
    except TypeError:  # it computes with the answer; or fails again
        noted.asked = True
        jaxpr, shapes = jax.make_jaxpr(functools.partial(run, forward), return_shape=True)(key, images)
    outputs, variables = shapes
    params, others = variables.get("params", {}), {k: v for k, v in variables.items() if k != "params"}
    places = jax.tree.unflatten(jax.tree.structure(shapes), range(len(jax.tree.leaves(shapes))))
    own = jax.tree.leaves(places[1].get("params", {}))
    states = jax.tree.leaves({k: v for k, v in places[1].items() if k != "params"})
    paths, tree = jax.tree.flatten_with_path(params)
    own_values = [parameter(Leaf(i), leaf.shape) for i, (_, leaf) in enumerate(paths)]
    other_values = [state(Leaf(i), leaf.shape, leaf.dtype) for i, leaf in enumerate(jax.tree.leaves(others))]
    inputs: list[Value] = [Constant(), Activation(frozenset([0]))]
    traced = jaxpr
    defined: dict[int, Value] = dict(zip([*states, *own], [*other_values, *own_values], strict=True))
    if noted.asked or not are_read(jaxpr.jaxpr, own):
        traced = jax.make_jaxpr(run_with)(params, others, key, images)
        inputs, defined = [*own_values, *other_values, *inputs], {}

    def initial_state(params: Any) -> dict[str, Any]:
        """All but parameters; in NumPy if they are mere fills, so that nothing is compiled."""
        leaves: Sequence[Any] = _fills(jaxpr.jaxpr, states)
        if any(leaf is None for leaf in leaves):
            leaves = jax.jit(computed_state)(params, key, jnp.zeros(images.shape, images.dtype))
        return jax.tree.unflatten(jax.tree.structure(others), jax.device_put(leaves))

    def computed_state(params: Any, key: jax.Array, x: jax.Array) -> list[jax.Array]:
        """By an initialisation with the parameters given, since they are what it may be computed from."""

        def forward(model: nn.Module, x: jax.Array) -> None:
            assert model.scope is not None
            model.scope.__class__ = GivenParameters
            for name, value in params.items():
                model.scope.put_variable("params", name, value)
            model(x, **keywords)  # pyright: ignore[reportCallIssue]

        _, made = nn.init_with_output(forward, model)(evaluation.random_keys(key), x)
        return jax.tree.leaves({name: made[name] for name in others})

    def initial(indices: Sequence[int]) -> dict[int, Any]:
        @jax.jit
        def initialise(key: jax.Array, x: jax.Array) -> list[jax.Array]:
            variables = model.init(evaluation.random_keys(key), x, **keywords)  # pyright: ignore
            leaves = jax.tree.leaves(variables["params"])
            return [leaves[i] for i in indices]

        return dict(zip(indices, initialise(key, jnp.zeros(images.shape, images.dtype)), strict=True))

    def rebuild(leaves: Sequence[Any]) -> Any:
        filled = {"params": jax.tree.unflatten(tree, leaves)}
        filled |= initial_state(filled["params"])
        return {name: filled[name] for name in variables}  # in the order of the model's own

    return Traced(
        traced,
        inputs,
        find(outputs),
        defined,
        [leaf_name(p) for p, _ in paths],
        [x for _, x in paths],
        len(states),
        initial,
        rebuild,
    )


def split_nnx(model: nnx.Module) -> tuple[Any, Any, Any]:
    """An NNX model as definition, parameters and everything else, of which nothing is shared with it."""
    definition, params, others = nnx.split(model, nnx.Param, ...)
    return definition, jax.tree.map(lambda x: x, params), jax.tree.map(lambda x: x, others)


def apply_nnx(
    definition: Any, params: Any, others: Any, x: Any, prepare: Callable[[nnx.Module], None] | None = None
) -> Any:
    """The outputs of an NNX model in evaluation; what `prepare` changes of it is forgotten."""
    merged = nnx.merge(definition, params, jax.tree.map(lambda x: x, others))  # new, to be changed here
    evaluation.put_in_evaluation(merged)
    if prepare is not None:
        prepare(merged)
    return merged(x, **evaluation.keywords(type(merged).__call__))


def _trace_nnx(model: nnx.Module, images: jax.ShapeDtypeStruct, find: _Outputs) -> Traced:
    definition, params, others = split_nnx(model)
    for path, leaf in jax.tree.leaves_with_path(others):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise UnsupportedModel(
                f"`model` is abstract, and its state {leaf_name(path)!r} is not predicted: give one that is made, "
                "such as Model(rngs=nnx.Rngs(0))"
            )

    def apply(params: Any, others: Any, x: Any) -> Any:
        return apply_nnx(definition, params, others, x)

    traced = _trace_function(Function(apply, params, others), images, find)

    def rebuild(leaves: Sequence[Any]) -> Any:
        return nnx.merge(definition, traced.rebuild(leaves)["params"], jax.tree.map(lambda x: x, others))

    return traced._replace(rebuild=rebuild)


def _trace_function(model: Function, images: jax.ShapeDtypeStruct, find: _Outputs) -> Traced:
    apply, params, states = model
    paths, tree = jax.tree.flatten_with_path(params)
    for path, x in paths:
        if isinstance(x, str) or not (hasattr(x, "dtype") or np.isscalar(x)):
            raise UnsupportedModel(
                f"`model` has among its parameters {leaf_name(path)!r}, a {type(x).__name__}: give arrays alone, as "
                "of eqx.partition(model, eqx.is_array)"
            )
    leaves = [abstract(x) for _, x in paths]
    own = jax.tree.map(abstract, states)
    args = (jax.tree.unflatten(tree, leaves), *(() if states is None else (own,)), images)
    jaxpr, shapes = jax.make_jaxpr(apply, return_shape=True)(*args)
    values: list[Value] = [parameter(Leaf(i), leaf.shape) for i, leaf in enumerate(leaves)]
    state_leaves = jax.tree.leaves(own)
    values += [state(Leaf(i), leaf.shape, leaf.dtype) for i, leaf in enumerate(state_leaves)]
    values.append(Activation(frozenset([0])))

    def initial(indices: Sequence[int]) -> dict[int, Any]:
        own = {i: paths[i][1] for i in indices}
        for i, value in own.items():
            if isinstance(value, jax.ShapeDtypeStruct):
                raise UnsupportedModel(
                    f"parameter {leaf_name(paths[i][0])!r} cannot be predicted, and `model.params` is abstract: "
                    "give parameters with values"
                )
        return own

    def rebuild(leaves: Sequence[Any]) -> Any:
        filled = jax.tree.unflatten(tree, leaves)
        return filled if states is None else {"params": filled, "state": states}

    names = [leaf_name(p) or "params" for p, _ in paths]
    return Traced(jaxpr, values, find(shapes), {}, names, leaves, len(state_leaves), initial, rebuild)


def abstract(x: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array, of a number, or of what has them."""
    return jax.ShapeDtypeStruct(np.shape(x), x.dtype if hasattr(x, "dtype") else jnp.result_type(x))


def _fills(jaxpr: core.Jaxpr, places: Sequence[int]) -> list[np.ndarray | None]:
    """Outputs of a jaxpr that are one number everywhere; None for others."""
    made_by = {var: equation for equation in jaxpr.eqns for var in equation.outvars}

    def value(atom: core.Var | core.Literal) -> np.ndarray | None:
        if isinstance(atom, core.Literal):
            return np.asarray(atom.val, atom.aval.dtype)  # pyright: ignore[reportAttributeAccessIssue]
        equation = made_by.get(atom)
        if equation is None or equation.primitive.name != "broadcast_in_dim":
            return None
        (operand, *_), aval = equation.invars, equation.outvars[0].aval
        return np.full(aval.shape, operand.val, aval.dtype) if isinstance(operand, core.Literal) else None  # pyright: ignore

    return [value(jaxpr.outvars[place]) for place in places]
