"""Norms and attention, lowered for the platform; convolutions and pools have modules of their own.

Feature maps are [batch, height, width, channel]. What autodiff makes of norms and attention is slow on the CPU.

Maps may be bfloat16: statistics and probabilities are then computed in float32.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ghn_jax.executor.convolutions import Map, on_cpu

Vector = Float[Array, " channel"]

_EPSILON = 1e-5
_SCORES = 1 << 19  # of the heads that attention takes at a time: 2 MB


@jax.custom_vjp
def batch_norm(x: Map, scale: Vector, bias: Vector) -> Map:
    """Normalises each channel by the statistics of the batch (biased variance, epsilon 1e-5)."""
    mean, inverse = _moments(x)
    gain = inverse * scale
    return (x * gain + (bias - mean * gain)).astype(x.dtype)


def _wide(x: Array) -> Array:
    """At least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _moments(x: Map) -> tuple[Vector, Vector]:
    """Mean and inverse deviation of each channel, in one pass over the map."""
    x = _wide(x)
    mean = x.mean((0, 1, 2))
    variance = jnp.maximum((x * x).mean((0, 1, 2)) - mean * mean, 0.0)
    return mean, lax.rsqrt(variance + _EPSILON)


def _norm_forward(x, scale, bias):
    return batch_norm(x, scale, bias), (x, scale)


def _norm_backward(residuals, g):
    x, scale = residuals
    mean, inverse = _moments(x)
    dtype, x, g = x.dtype, _wide(x), _wide(g)
    count = x.shape[0] * x.shape[1] * x.shape[2]
    dbias = g.sum((0, 1, 2))
    dscale = ((g * x).sum((0, 1, 2)) - mean * dbias) * inverse
    # dx = gain (g - dbias / n - normalised * dscale / n), as g * a + x * b + c
    gain = inverse * scale
    b = -gain * inverse * dscale / count
    c = -gain * dbias / count - mean * b
    return (g * gain + x * b + c).astype(dtype), dscale.astype(dtype), dbias.astype(dtype)


batch_norm.defvjp(_norm_forward, _norm_backward)


@jax.custom_vjp
def layer_norm(
    x: Float[Array, "token channel"], scale: Vector, bias: Vector
) -> Float[Array, "token channel"]:
    """Normalises the channels of each token (epsilon 1e-5)."""
    normalized, _ = _standardized(_wide(x))
    return (normalized * scale + bias).astype(x.dtype)


def _standardized(x: Array) -> tuple[Array, Array]:
    """Tokens with mean 0 and variance 1, and the inverse of their deviations before."""
    centred = x - x.mean(-1, keepdims=True)
    inverse = lax.rsqrt((centred * centred).mean(-1, keepdims=True) + _EPSILON)
    return centred * inverse, inverse


def _layer_norm_forward(x, scale, bias):
    return layer_norm(x, scale, bias), (x, scale)


def _layer_norm_backward(residuals, g):
    """Written out, since what autodiff makes of it takes XLA:CPU ten times as long."""
    x, scale = residuals
    dtype, g = x.dtype, _wide(g)
    normalized, inverse = _standardized(_wide(x))
    gain = g * scale
    along = (gain * normalized).mean(-1, keepdims=True)
    dx = inverse * (gain - gain.mean(-1, keepdims=True) - normalized * along)
    return tuple(d.astype(dtype) for d in (dx, (g * normalized).sum(0), g.sum(0)))


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


Heads = Float[Array, "batch token head c"]


@jax.custom_vjp
def attention(
    q: Heads, k: Heads, v: Heads, w_out: Float[Array, "head*c out"]
) -> Float[Array, "batch*token out"]:
    """Softmax attention, then the output projection."""
    mixed = _by_head(_mix, q, k, v)
    return jnp.einsum("bhtc->bthc", mixed).reshape(-1, w_out.shape[0]) @ w_out


def _attention_forward(q, k, v, w_out):
    return attention(q, k, v, w_out), (q, k, v, w_out)


def _attention_backward(residuals, g):
    """Attention is computed once more, and what depends on it at the same time."""
    q, k, v, w_out = residuals
    g_mixed = (g @ w_out.T).reshape(q.shape)
    mixed, dq, dk, dv = _by_head(_pull_back_mix, q, k, v, g_mixed)
    mixed, dq = (jnp.einsum("bhtc->bthc", x) for x in (mixed, dq))
    dk, dv = (jnp.einsum("bhct->bthc", x) for x in (dk, dv))
    dw = mixed.reshape(-1, w_out.shape[0]).T @ g.reshape(-1, g.shape[-1])
    return dq, dk, dv, dw


attention.defvjp(_attention_forward, _attention_backward)


def _by_head(function, *operands: Heads):
    """Applies a function of (sequence, token, c) arrays to each head; returns (batch, head, ...) arrays.

    On the CPU a few heads at a time, to stay in cache, and two times a few: XLA runs products of small matrices on one
    core each.
    """
    batch, tokens, heads, width = operands[0].shape
    fitting = max(1, _SCORES // tokens**2)
    few = min(32, 1 << fitting.bit_length() - 1)  # a power of two, so that it divides most batches
    group = math.gcd(batch * heads, few) if on_cpu() else batch * heads
    lanes = math.gcd(batch * heads // group, 2)
    split = [x.transpose(0, 2, 1, 3).reshape(-1, lanes, group, tokens, width) for x in operands]

    def apply(xs: list[Array]):
        outputs = [function(*(x[lane] for x in xs)) for lane in range(lanes)]
        return jax.tree.map(lambda *parts: jnp.stack(parts), *outputs)

    return jax.tree.map(lambda x: x.reshape(batch, heads, *x.shape[3:]), lax.map(apply, split))


def _exponentials(q: Array, k: Array) -> tuple[Array, Array]:
    """Exponentials of the scores of each query, at most 1, and their sum."""
    scores = _wide(jnp.einsum("nqc,nkc->nqk", q * q.shape[-1] ** -0.5, k))
    exponentials = jnp.exp(scores - scores.max(-1, keepdims=True))
    return exponentials, exponentials.sum(-1, keepdims=True)


def _mix(q: Array, k: Array, v: Array) -> Array:
    e, total = _exponentials(q, k)
    return (jnp.einsum("nqk,nkc->nqc", e.astype(v.dtype), v) / total).astype(v.dtype)


def _pull_back_mix(q: Array, k: Array, v: Array, g: Array) -> tuple[Array, Array, Array, Array]:
    """The mixed values, and the gradients of queries, keys and values given that of the mixed values.

    The last two are (sequence, c, token), so that no first matrix of a product is transposed: XLA:CPU would take up to
    five times as long.
    """
    e, total = _exponentials(q, k)
    p = (e / total).astype(q.dtype)
    mixed = jnp.einsum("nqk,nkc->nqc", p, v)
    dp = jnp.einsum("nqc,nkc->nqk", g, v)
    ds, scale = p * (dp - (g * mixed).sum(-1, keepdims=True)), q.shape[-1] ** -0.5
    dq, dk = jnp.einsum("nqk,nkc->nqc", ds, k * scale), jnp.einsum("nqc,nqk->nck", q * scale, ds)
    return mixed, dq, dk, jnp.einsum("nqc,nqk->nck", g, p)
