"""Batch norm without training: statistics of the images at hand.

A GHN predicts no running statistics. Published accuracies use those of each batch; to run a model in evaluation
mode, fill them in from some images first.
"""

from typing import Any

import flax.linen as nn
import jax
from flax import nnx
from jax import lax
from jaxtyping import Array, Float


def apply_by_batch(model: Any, variables: Any, images: Float[Array, "batch ..."]) -> Any:
    """The model's output in evaluation mode, but with each batch norm by the statistics of this batch.

    Args:
      model: a Linen module, whose batch norms are `flax.linen.BatchNorm`; or the NNX class, not looked at.
      variables: its variables; or the filled NNX model, whose batch norms are `flax.nnx.BatchNorm`.
    """
    if isinstance(variables, nnx.Module):
        return _by_batch(variables)(images)
    with nn.intercept_methods(_normalize_by_batch):
        return model.apply(variables, images)


def fill_running_statistics(model: Any, variables: Any, images: Float[Array, "batch ..."]) -> Any:
    """The variables (or NNX model), with the statistics of these images as running statistics; arguments as above."""
    if isinstance(variables, nnx.Module):
        filled = _by_batch(variables)
        filled(images)
        filled.eval()
        return filled
    if "batch_stats" not in variables:
        return variables
    with nn.intercept_methods(_normalize_by_batch):
        _, updated = model.apply(variables, images, mutable=["batch_stats"])
    return {**variables, **updated}


def _normalize_by_batch(
    next_function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext
) -> Any:
    """Replaces BatchNorm's call; writes the statistics down where they are mutable."""
    norm = context.module
    if not isinstance(norm, nn.BatchNorm) or context.method_name != "__call__":
        return next_function(*args, **kwargs)
    x: jax.Array = args[0]
    axes = tuple(axis for axis in range(x.ndim) if axis != norm.axis % x.ndim)
    mean, variance = x.mean(axes), x.var(axes)
    if norm.is_mutable_collection("batch_stats"):
        norm.put_variable("batch_stats", "mean", mean)
        norm.put_variable("batch_stats", "var", variance)
    shape = [1] * x.ndim
    shape[norm.axis] = x.shape[norm.axis]
    params = norm.variables.get("params", {})
    scale = lax.rsqrt(variance + norm.epsilon) * params.get("scale", 1.0)
    return (x - mean.reshape(shape)) * scale.reshape(shape) + _shaped(params.get("bias"), shape)


def _shaped(bias: jax.Array | None, shape: list[int]) -> jax.Array | float:
    return 0.0 if bias is None else jax.numpy.reshape(bias, shape)


def _by_batch(model: nnx.Module) -> Any:
    """A copy of an NNX model whose batch norms use, and keep, the statistics of the batch."""
    copy = nnx.clone(model)
    copy.eval()
    for _, module in nnx.iter_modules(copy):
        if isinstance(module, nnx.BatchNorm):
            module.use_running_average, module.momentum = False, 0.0
    return copy
