"""A classifier in training, whatever it is made with: pure functions of its parameters and its state.

State is what a model keeps beside its parameters: running statistics of batch norm, and an NNX model's random streams.
"""

import hashlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ghn_jax.tracing import evaluation
from ghn_jax.tracing.errors import UnsupportedModel
from ghn_jax.tracing.models import Function, not_traceable

Logits = Float[Array, "batch label"]
Tree = Any


class Classifier(NamedTuple):
    """How to run a model, and how to take apart what a user knows as its variables.

    Attributes:
      apply: (params, state, images, key) -> logits and the next state, in training; key draws dropout.
      evaluate: (params, state, images) -> logits.
      draw: key -> freshly initialised variables.
      split: variables -> (params, state).
      join: (params, state) -> variables.
    """

    apply: Callable[[Tree, Tree, Array, Array], tuple[Logits, Tree]]
    evaluate: Callable[[Tree, Tree, Array], Logits]
    draw: Callable[[Array], Any]
    split: Callable[[Any], tuple[Tree, Tree]]
    join: Callable[[Tree, Tree], Any]


def classifier(model: Any, sample_input: jax.ShapeDtypeStruct) -> Classifier:
    """A model ready for training.

    Args:
      model: a Linen module, an NNX module (whose own parameters are its fresh ones), or a `ghn_jax.Function`.
      sample_input: a batch of images as the model takes them.

    Raises UnsupportedModel for anything else.
    """
    if isinstance(model, nn.Module):
        return _linen(model, sample_input)
    if isinstance(model, nnx.Module):
        return _nnx(model)
    if isinstance(model, Function):
        return _function(model)
    raise UnsupportedModel(
        f"`model` (a {type(model).__name__}) is no Flax module: wrap it as ghn_jax.Function(apply, params)"
    )


def logits_of(classifier: Classifier, sample_input: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The shape of a model's logits; raises UnsupportedModel for one that cannot be traced."""

    def evaluated() -> Logits:
        variables = classifier.draw(jax.random.key(0))
        images = jnp.zeros(sample_input.shape, sample_input.dtype)
        return classifier.evaluate(*classifier.split(variables), images)

    try:
        return jax.eval_shape(evaluated)
    except UnsupportedModel:
        raise
    except Exception as error:  # whatever the model raises
        raise not_traceable(error, sample_input) from error


def code(run: Callable[..., Any], *args: Any) -> str:
    """A hash of what `apply` or `evaluate` computes, by which models of equal parameters are told apart.

    It is of the jaxpr, which another version of JAX may write otherwise, so that version is in it.
    """
    text = re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(run)(*args)))  # addresses
    return f"JAX {jax.__version__} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _linen(model: nn.Module, sample_input: jax.ShapeDtypeStruct) -> Classifier:
    in_training, in_evaluation = _keywords(type(model).__call__)
    learner: Any = evaluation.linen_in_evaluation(model, training=True)
    judged: Any = evaluation.linen_in_evaluation(model)

    def apply(params: Tree, state: Tree, images: Array, key: Array) -> tuple[Logits, Tree]:
        output, changed = learner.apply(
            {"params": params, **state}, images, **in_training, mutable=list(state), rngs={"dropout": key}
        )
        return _logits(output), {**state, **changed}

    def evaluate(params: Tree, state: Tree, images: Array) -> Logits:
        return _logits(judged.apply({"params": params, **state}, images, **in_evaluation))

    def draw(key: Array) -> Any:
        def init(key: Array) -> Any:
            params_key, dropout_key = jax.random.split(key)
            images = jnp.zeros(sample_input.shape, sample_input.dtype)
            return judged.init({"params": params_key, "dropout": dropout_key}, images, **in_evaluation)

        return jax.jit(init)(key)

    def split(variables: Any) -> tuple[Tree, Tree]:
        return variables.get("params", {}), {k: v for k, v in variables.items() if k != "params"}

    return Classifier(apply, evaluate, draw, split, lambda params, state: {"params": params, **state})


def _nnx(model: nnx.Module) -> Classifier:
    definition, own_params, own_state = nnx.split(model, nnx.Param, ...)
    in_training, in_evaluation = _keywords(type(model).__call__)

    def run(params: Tree, state: Tree, images: Array, train: bool) -> tuple[Logits, Tree]:
        merged: Any = nnx.merge(definition, params, state, copy=True)
        evaluation.put_in_evaluation(merged, training=train)
        logits = _logits(merged(images, **(in_training if train else in_evaluation)))
        return logits, nnx.state(merged, nnx.Not(nnx.Param))

    def split(variables: Any) -> tuple[Tree, Tree]:
        _, params, state = nnx.split(variables, nnx.Param, ...)
        return params, state

    return Classifier(
        lambda params, state, images, _: run(params, state, images, train=True),
        lambda params, state, images: run(params, state, images, train=False)[0],
        lambda _: nnx.merge(definition, own_params, own_state, copy=True),
        split,
        lambda params, state: nnx.merge(definition, params, state, copy=True),
    )


def _function(model: Function) -> Classifier:
    has_state = model.state is not None

    def evaluate(params: Tree, state: Tree, images: Array) -> Logits:
        return _logits(model.apply(params, *((state,) if has_state else ()), images))

    def join(params: Tree, state: Tree) -> Any:
        return {"params": params, "state": state} if has_state else params

    return Classifier(
        lambda params, state, images, _: (evaluate(params, state, images), state),
        evaluate,
        lambda _: join(model.params, model.state),
        lambda variables: (variables["params"], variables["state"]) if has_state else (variables, {}),
        join,
    )


def _keywords(call: Callable[..., Any]) -> tuple[dict[str, bool], dict[str, bool]]:
    """Arguments of a call that say whether a model is in training, and their values in training and in evaluation."""
    wanted = evaluation.keywords(call)
    return {name: not value for name, value in wanted.items()}, wanted


def _logits(output: Any) -> Logits:
    """The first output with two axes: auxiliary ones follow."""
    leaves = jax.tree.leaves(output)
    return next((leaf for leaf in leaves if leaf.ndim == 2), leaves[0])


def named(tree: Tree) -> dict[str, Array]:
    """The leaves of a tree by name, such as "Dense_0.kernel"; random keys as their data."""
    paths = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): _plain(leaf) for path, leaf in paths}


def unnamed(leaves: dict[str, Any], like: Tree) -> Tree:
    """The inverse of `named`, for a tree with this structure."""

    def pick(path: Any, leaf: Any) -> Any:
        value = leaves[jax.tree_util.keystr(path, simple=True, separator=".")]
        return jax.random.wrap_key_data(jnp.asarray(value)) if _is_key(leaf) else jnp.asarray(value)

    return jax.tree.map_with_path(pick, like)


def _plain(leaf: Any) -> Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else jnp.asarray(leaf)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
