"""Batch norms that are told which elements count: evaluation does not use the mask, statistics of a batch do."""

import functools
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

MASKED = "ghn_jax_masked"
"""Name of the call that an array and its mask go through."""


def _masked(x: jax.Array, mask: jax.Array) -> jax.Array:
    return jax.lax.optimization_barrier((x, mask))[0]  # so that the mask is not left out as unused


_masked.__name__ = MASKED
masked = jax.jit(_masked)


def note_linen_masks(
    next_function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext
) -> Any:
    """An interceptor of methods, that marks what Flax's BatchNorm is called on with a mask."""
    is_norm = isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__"
    if is_norm and args and kwargs.get("mask") is not None:
        args = (masked(args[0], kwargs["mask"]), *args[1:])
    return next_function(*args, **kwargs)


def note_nnx_masks(model: nnx.Module) -> None:
    """Makes the batch norms of an NNX model mark what they are called on with a mask."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.BatchNorm):
            module.__class__ = _noting(type(module))


@functools.cache
def _noting(norm: type) -> type:
    def call(self: Any, x: Any, *args: Any, mask: Any = None, **kwargs: Any) -> Any:
        if mask is None:
            return norm.__call__(self, x, *args, **kwargs)
        return norm.__call__(self, masked(x, mask), *args, mask=mask, **kwargs)

    return type(norm.__name__, (norm,), {"__call__": call})
