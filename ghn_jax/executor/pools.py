"""3x3 pools with padding 1, lowered for the platform.

On the CPU XLA's window reductions are slow (the gradient of a max-pool 5 times), as is what autodiff makes of strided
slices. Both forms compute the same function.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ghn_jax.executor.convolutions import Map, on_cpu, pad_map


def max_pool(x: Map, stride: int) -> Map:
    """The maximum over 3x3 windows, padding 1; the gradient goes to the first of several, as in PyTorch."""
    if not on_cpu():
        return lax.reduce_window(
            x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
        )
    if stride == 2:
        return _halving_maximum(_halving_maximum(x, 2), 1)
    return _separable_pool(x, stride, _first_maximum, -jnp.inf)


def average_pool(x: Map, stride: int) -> Map:
    """The mean over 3x3 windows, padding 1, of the pixels inside the map."""
    if on_cpu():
        total = _separable_pool(x, stride, jnp.add, 0.0)
    else:
        total = lax.reduce_window(
            x, 0.0, lax.add, (1, 3, 3, 1), (1, stride, stride, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
        )
    size, out = x.shape[1], total.shape[1]
    counts = [sum(0 <= o * stride + i - 1 < size for i in range(3)) for o in range(out)]
    inverse = 1.0 / jnp.array(counts, x.dtype)
    return total * (inverse[:, None, None] * inverse[None, :, None])


def _separable_pool(x: Map, stride: int, combine, neutral: float) -> Map:
    padded, out = pad_map(x, 1, neutral), -(-x.shape[1] // stride)
    span = stride * (out - 1) + 1
    rows = functools.reduce(combine, [padded[:, :, i : i + span : stride] for i in range(3)])
    return functools.reduce(combine, [rows[:, i : i + span : stride] for i in range(3)])


def _first_maximum(a: Array, b: Array) -> Array:
    """The maximum, NaN if one is, whose gradient goes to `a` if they are equal (that of jnp.maximum is shared)."""
    return jnp.where(_exceeds(b, a), b, a)


def _exceeds(b: Array, a: Array) -> Array:
    return (b > a) | jnp.isnan(b)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _halving_maximum(x: Map, axis: int) -> Map:
    """The maximum over windows of 3 along an axis, stride 2, padding 1: of an even pixel and the odd ones beside it."""
    even, odd = _phases(x, axis)
    return _first_maximum(_first_maximum(_shifted(odd, axis, 1, -jnp.inf), even), odd)


def _halving_forward(x, axis):
    return _halving_maximum(x, axis), x


def _halving_backward(axis, x, g):
    """Phase by phase, then side by side: autodiff would write a map with gaps for each of the three."""
    even, odd = _phases(x, axis)
    before = _shifted(odd, axis, 1, -jnp.inf)
    is_after = _exceeds(odd, _first_maximum(before, even))
    is_even = _exceeds(even, before) & ~is_after
    to_before = _shifted(jnp.where(is_after | is_even, 0.0, g), axis, -1, 0.0)
    phases = [jnp.where(is_even, g, 0.0), jnp.where(is_after, g, 0.0) + to_before]
    shape = (*x.shape[:axis], 2 * g.shape[axis], *x.shape[axis + 1 :])
    dx = jnp.stack(phases, axis + 1).reshape(shape)
    return (lax.slice_in_dim(dx, 0, x.shape[axis], axis=axis),)


_halving_maximum.defvjp(_halving_forward, _halving_backward)


def _phases(x: Map, axis: int) -> tuple[Map, Map]:
    """Even and odd pixels along an axis, as many of each."""
    size = x.shape[axis]
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), [(0, size % 2 * (a == axis), 0) for a in range(x.ndim)])
    pairs = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
    even, odd = (lax.index_in_dim(pairs, phase, axis + 1, keepdims=False) for phase in range(2))
    return even, odd


def _shifted(x: Map, axis: int, by: int, value: float) -> Map:
    """A map moved along an axis by a pixel, forward (1) or back (-1)."""
    sides = [(by, -by, 0) if a == axis else (0, 0, 0) for a in range(x.ndim)]
    return lax.pad(x, jnp.array(value, x.dtype), sides)
