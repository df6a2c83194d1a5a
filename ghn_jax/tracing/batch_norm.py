"""Batch norm without training: statistics of the images at hand.

A GHN predicts no running statistics. Published accuracies use those of each batch; to run a model in evaluation
mode, fill them in from some images first.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer
from jax.extend import core
from jax.interpreters import partial_eval
from jaxtyping import Array, Float

from ghn_jax.tracing import evaluation
from ghn_jax.tracing.arguments import check_model
from ghn_jax.tracing.blank import BlankParameters
from ghn_jax.tracing.errors import UnsupportedModel
from ghn_jax.tracing.masks import note_linen_masks, note_nnx_masks
from ghn_jax.tracing.models import Function, abstract, apply_nnx, not_traceable, split_nnx
from ghn_jax.tracing.outputs import leaf_name
from ghn_jax.tracing.rerun import Map, Rerun
from ghn_jax.tracing.values import Activation, Leaf, Value, parameter, state
from ghn_jax.tracing.walk import walk


def apply_by_batch(model: Any, variables: Any, images: Float[Array, "batch ..."]) -> Any:
    """The model's outputs in evaluation mode, but with each batch norm by the statistics of this batch.

    Args:
      model: the model, as for `predict_parameters`; not looked at if `variables` is an NNX model.
      variables: its variables, as `predict_parameters` gives them, or the NNX model itself.

    Raises UnsupportedModel for a model in which running statistics are used in ways that are no norm.
    """
    with evaluation.default_settings():
        outputs, _ = _run(_take_apart(model, variables), images, fill=False)
    return outputs


def fill_running_statistics(model: Any, variables: Any, images: Float[Array, "batch ..."]) -> Any:
    """The variables (or NNX model), with the statistics of these images as running statistics; arguments as above.

    Where layers share a norm, it gets the mean of their statistics.

    Raises UnsupportedModel as above, and for a function that holds its running statistics itself.
    """
    with evaluation.default_settings():
        apart = _take_apart(model, variables)
        _, filled = _run(apart, images, fill=True)
        return apart.rebuild(filled)


class _Apart(NamedTuple):
    """A model as a function, with its parameters and state.

    Attributes:
      apply: (parameters, state, images) -> outputs, in evaluation.
      identity: what is equal for models that do the same; None if that is not known.
      is_statistic: of each leaf of the state, whether nothing but a norm may use it.
      rebuild: makes variables of a new state.
    """

    apply: Callable[..., Any]
    identity: Any
    params: Any
    state: Any
    is_statistic: list[bool]
    rebuild: Callable[[Any], Any]


def _run(apart: _Apart, images: Any, fill: bool) -> tuple[Any, Any]:
    """The outputs by batch, and the state if it is to be filled; compiled where the same model will be known again."""
    args = (apart.params, apart.state, jax.device_put(images))
    if apart.identity is None or any(isinstance(x, Tracer) for x in jax.tree.leaves(args)):
        return _forward(apart, *args, fill)
    return _compiled(
        _Same(apart.identity, apart._replace(params=None, state=None, rebuild=_forgotten)), *args, fill
    )


def _forgotten(_: Any) -> Any:
    raise AssertionError("what is kept for a compiled forward holds no variables")


@dataclasses.dataclass(frozen=True)
class _Same:
    """A model, equal to those of the same identity."""

    identity: Any
    apart: _Apart = dataclasses.field(compare=False)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _compiled(same: _Same, params: Any, states: Any, images: Array, fill: bool) -> tuple[Any, Any]:
    return _forward(same.apart, params, states, images, fill)


def _forward(apart: _Apart, params: Any, states: Any, images: Array, fill: bool) -> tuple[Any, Any]:
    own_params, own_states = jax.tree.leaves_with_path(params), jax.tree.leaves_with_path(states)
    try:
        args = jax.tree.map(abstract, (params, states, images))
        jaxpr, shapes = jax.make_jaxpr(apart.apply, return_shape=True)(*args)
    except UnsupportedModel:
        raise
    except Exception as error:  # whatever the model raises
        raise not_traceable(error, images) from error
    jaxpr = _without_unused(jaxpr)
    rerun = _prepare(jaxpr, own_params, own_states, apart.is_statistic)
    operands = [x for _, x in own_params]
    operands += [rerun.state(i, x) for i, (_, x) in enumerate(own_states)]
    results = [rerun.result(value) for value in rerun.closed(jaxpr, [*operands, Map(images)])]
    outputs = jax.tree.unflatten(jax.tree.structure(shapes), results)
    if not fill:
        return outputs, None
    filled = [x for _, x in own_states]
    for leaf, values in rerun.statistics.items():
        if leaf.index >= len(filled):
            raise UnsupportedModel(
                f"`model` holds a running statistic {rerun.name(leaf)} itself, where it cannot be filled: give it "
                "as ghn_jax.Function(apply, params, state) with apply(params, state, images)"
            )
        mean = functools.reduce(jnp.add, values) / len(values)
        whole = jnp.asarray(filled[leaf.index])
        filled[leaf.index] = whole.at[leaf.place].set(mean.astype(whole.dtype))
    return outputs, jax.tree.unflatten(jax.tree.structure(states), filled)


def _without_unused(jaxpr: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """What the outputs are made of; all inputs stay."""
    used, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars), instantiate=True)
    return core.ClosedJaxpr(used, jaxpr.consts)


def _prepare(
    jaxpr: core.ClosedJaxpr, params: list[Any], states: list[Any], is_statistic: Sequence[bool]
) -> Rerun:
    """Finds the norms, and that nothing else uses running statistics."""
    leaves = [abstract(x) for _, x in params]
    values: list[Value] = [parameter(Leaf(i), leaf.shape) for i, leaf in enumerate(leaves)]
    values += [state(Leaf(i), jnp.shape(x), x.dtype) for i, (_, x) in enumerate(states)]
    values.append(Activation(frozenset([0])))
    names, state_names = ([leaf_name(path) for path, _ in tree] for tree in (params, states))
    walked = walk(jaxpr, values, None, names, leaves, {}, len(states))
    used = {leaf for norm in walked.norms for leaf in (norm.mean, norm.variance)}
    for leaf in sorted(walked.met - used):
        if leaf.index < len(states) and is_statistic[leaf.index]:
            raise UnsupportedModel(
                f"running statistic {leaf.name(state_names)!r} is used in a way that is no norm: statistics of a batch "
                "cannot take its place"
            )
    return Rerun(walked.norms, walked.constants, state_names)


def _take_apart(model: Any, variables: Any) -> _Apart:
    if isinstance(variables, nnx.Module):
        return _nnx_apart(variables)
    check_model(model, Function)
    if isinstance(model, nn.Module):
        return _linen_apart(model, variables)
    if isinstance(model, nnx.Module):
        raise UnsupportedModel(
            "`variables` of an NNX model are the filled model that `predict_parameters` gives"
        )
    if model.state is None:
        return _Apart(lambda p, _, x: model.apply(p, x), None, variables, (), [], lambda _: variables)
    params, states = variables["params"], variables["state"]
    count = len(jax.tree.leaves(states))
    return _Apart(model.apply, None, params, states, [False] * count, lambda new: {**variables, "state": new})


def _linen_apart(model: nn.Module, variables: Any) -> _Apart:
    model = evaluation.linen_in_evaluation(model)
    keywords = evaluation.keywords(type(model).__call__)
    params = variables.get("params", {})
    states = {name: tree for name, tree in variables.items() if name != "params"}

    def forward(model: nn.Module, x: jax.Array) -> Any:
        assert model.scope is not None
        model.scope.__class__ = BlankParameters
        return model(x, **keywords)  # pyright: ignore[reportCallIssue]

    def apply(params: Any, states: Any, x: jax.Array) -> Any:
        keys = evaluation.random_keys(jax.random.key(0))
        with nn.intercept_methods(note_linen_masks):
            # a norm that is always in training writes new running statistics, which nothing reads
            return nn.apply(forward, model, mutable=True)({"params": params, **states}, x, rngs=keys)[0]

    kinds = [path[0].key == "batch_stats" for path, _ in jax.tree.leaves_with_path(states)]
    return _Apart(apply, _hashable(model), params, states, kinds, lambda new: {**variables, **new})


def _nnx_apart(model: nnx.Module) -> _Apart:
    definition, params, others = split_nnx(model)

    def apply(params: Any, others: Any, x: jax.Array) -> Any:
        return apply_nnx(definition, params, others, x, note_nnx_masks)

    def rebuild(others: Any) -> Any:
        filled = nnx.merge(definition, params, others)
        filled.eval()
        return filled

    statistics = jax.tree.map(lambda _: True, nnx.state(model, nnx.BatchStat))
    known = {path for path, _ in jax.tree.leaves_with_path(statistics)}
    kinds = [path in known for path, _ in jax.tree.leaves_with_path(others)]
    return _Apart(apply, _hashable(definition), params, others, kinds, rebuild)


def _hashable(model: Any) -> Any:
    """The model, if it can be compared with others."""
    try:
        hash(model)
    except TypeError:
        return None
    return model
