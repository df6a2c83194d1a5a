"""Checks what a user gives as a model and as images: what was given, and what to give."""

import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ghn_jax.tracing.errors import UnsupportedModel


def check_images(sample_input: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of images; raises UnsupportedModel for what are none."""
    if isinstance(sample_input, tuple | list | dict):
        what = f"a {type(sample_input).__name__} of {len(sample_input)}"
        raise UnsupportedModel(
            f"`sample_input` is {what}, and a classifier takes one array of images: wrap a model of several inputs as "
            "ghn_jax.Function(lambda params, images: ..., params), with the others given inside"
        )
    dtype = getattr(sample_input, "dtype", jnp.float32)
    try:
        images = jax.ShapeDtypeStruct(np.shape(sample_input), jnp.dtype(dtype))
    except TypeError:
        raise UnsupportedModel(
            f"`sample_input` is a {type(sample_input).__module__}.{type(sample_input).__name__} of {dtype}: give an "
            "array of NumPy or JAX, or a jax.ShapeDtypeStruct"
        ) from None
    if len(images.shape) < 2:
        raise UnsupportedModel(
            f"`sample_input` of shape {images.shape} is no batch of images: give (batch, height, width, channel)"
        )
    return images


def check_model(model: Any, function: type) -> None:
    """Raises UnsupportedModel for what is neither a Flax module nor a `function`."""
    if isinstance(model, nn.Module | nnx.Module):
        return
    kind = type(model).__name__
    if isinstance(model, function):
        apply = model[0]
        if callable(apply):
            return
        raise UnsupportedModel(
            f"`model` is a ghn_jax.Function whose `apply` (a {type(apply).__name__}) cannot be called: give "
            "ghn_jax.Function(apply, params), in this order"
        )
    if inspect.isclass(model):
        made = "(rngs=flax.nnx.Rngs(0))" if issubclass(model, nnx.Module) else "()"
        raise UnsupportedModel(
            f"`model` (={model.__name__}) is a class: give a model that is made, such as {model.__name__}{made}"
        )
    if type(model).__name__ == "TransformedWithState":  # of Haiku
        raise UnsupportedModel(
            f"`model` (a {kind} of init and apply) has no parameters yet: params, state = model.init(key, images), and "
            "give ghn_jax.Function(lambda params, state, images: model.apply(params, state, None, images)[0], params, "
            "state)"
        )
    if hasattr(model, "init") and hasattr(model, "apply"):
        raise UnsupportedModel(
            f"`model` (a {kind} of init and apply) has no parameters yet: params = model.init(key, images), and give "
            "ghn_jax.Function(lambda params, images: model.apply(params, None, images), params)"
        )
    if isinstance(model, tuple) and model and isinstance(model[0], nn.Module | nnx.Module):
        raise UnsupportedModel(
            f"`model` is a tuple of {type(model[0]).__name__} and {len(model) - 1} more: give the model alone, its "
            "parameters are made"
        )
    raise UnsupportedModel(
        f"`model` (a {kind}) is no Flax module: wrap it as ghn_jax.Function(apply, params)"
    )
