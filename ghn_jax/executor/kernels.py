"""The layers that networks are made of, lowered for the platform: the only place that asks which one it is.

Feature maps are [batch, height, width, channel]. On GPU and TPU the native convolutions and window reductions
of XLA are right. On the CPU several of them are slow (a depthwise convolution 50 times, the gradient of a
max-pool 5 times), so there they are written as shifted multiply-adds, products of matrices and transposed
convolutions. Both forms compute the same function.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Map = Float[Array, "batch height width channel"]
Vector = Float[Array, " channel"]
Pair = tuple[int, int]

_NHWC = ("NHWC", "HWIO", "NHWC")
_EPSILON = 1e-5


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def pointwise(x: Map, w: Float[Array, "channel out"]) -> Map:
    """A 1x1 convolution, as the product of two matrices."""
    return (x.reshape(-1, x.shape[-1]) @ w).reshape(*x.shape[:-1], w.shape[1])


def convolution(x: Map, w: Float[Array, "kh kw channel out"], stride: Pair, padding: Pair) -> Map:
    """A dense convolution; `stride` and `padding` (on both sides) are (vertical, horizontal)."""
    if w.shape[:2] == (1, 1) and padding == (0, 0):
        return pointwise(x[:, :: stride[0], :: stride[1]], w[0, 0])
    if not _on_cpu():
        return _native(x, w, stride, padding)
    if min(w.shape[:2]) > max(x.shape[1:3]):
        return _unrolled_convolution(x, w, stride, padding)
    return _dense_convolution(x, w, stride, padding)


def _native(x: Map, w: Array, stride: Pair, padding: Pair, dilation: int = 1, groups: int = 1) -> Map:
    sides = [(p, p) for p in padding]
    return lax.conv_general_dilated(
        x,
        w,
        stride,
        sides,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_NHWC,
        feature_group_count=groups,
    )


def _unrolled_convolution(x: Map, w: Array, stride: Pair, padding: Pair) -> Map:
    """A kernel larger than the map joins every pixel with nearly every other: the product with one matrix."""
    batch, height, width, channels = x.shape
    out = [(x.shape[1 + i] + 2 * padding[i] - w.shape[i]) // stride[i] + 1 for i in range(2)]
    padded = jnp.pad(w, ((height, height), (width, width), (0, 0), (0, 0)))

    def taps(row: int, column: int) -> Array:
        """The kernel as the output pixel (row, column) lays it over the map."""
        y, x = height + padding[0] - row * stride[0], width + padding[1] - column * stride[1]
        return padded[y : y + height, x : x + width]

    matrix = jnp.stack([taps(row, column) for row in range(out[0]) for column in range(out[1])], axis=3)
    features = height * width * channels
    return (x.reshape(batch, features) @ matrix.reshape(features, -1)).reshape(batch, *out, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dense_convolution(x: Map, w: Array, stride: Pair, padding: Pair) -> Map:
    return _native(x, w, stride, padding)


def _dense_forward(x, w, stride, padding):
    return _native(x, w, stride, padding), (x, w)


def _dense_backward(stride, padding, residuals, g):
    """Both gradients as forward convolutions on transposed operands, the form that XLA:CPU runs fast."""
    x, w = residuals
    kernel, size = w.shape[:2], x.shape[1:3]
    # rows and columns at the far end that the strided window did not reach
    rest = [size[i] + 2 * padding[i] - kernel[i] - stride[i] * (g.shape[1 + i] - 1) for i in range(2)]
    near = [kernel[i] - 1 - padding[i] for i in range(2)]
    dx = lax.conv_general_dilated(
        g,
        jnp.flip(w, (0, 1)).swapaxes(2, 3),
        (1, 1),
        [(near[i], near[i] + rest[i]) for i in range(2)],
        lhs_dilation=stride,
        dimension_numbers=_NHWC,
    )
    dilated = g
    if stride != (1, 1):
        dilated = lax.pad(
            g, 0.0, ((0, 0, 0), (0, rest[0], stride[0] - 1), (0, rest[1], stride[1] - 1), (0, 0, 0))
        )
        padded = jnp.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))
        heights, widths = ((g.shape[1 + i] - 1) * stride[i] + 1 for i in range(2))
        shifts = [
            padded[:, i : i + heights : stride[0], j : j + widths : stride[1]].reshape(-1, x.shape[-1])
            for i in range(kernel[0])
            for j in range(kernel[1])
        ]
        columns = jnp.stack(shifts)
        dw = jnp.einsum("kni,no->kio", columns, g.reshape(-1, g.shape[-1])).reshape(w.shape)
        return dx, dw
    dw = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        dilated.transpose(1, 2, 0, 3),
        (1, 1),
        [(p, p) for p in padding],
        dimension_numbers=_NHWC,
    )
    return dx, dw.transpose(1, 2, 0, 3)


_dense_convolution.defvjp(_dense_forward, _dense_backward)


def depthwise(x: Map, w: Float[Array, "kh kw channel"], stride: int, dilation: int) -> Map:
    """A depthwise convolution with a square, odd kernel and padding that keeps the size at stride 1."""
    if _on_cpu():
        return _shifted_depthwise(x, w, stride, dilation)
    pad = (w.shape[0] - 1) * dilation // 2
    return _native(x, w[:, :, None], (stride, stride), (pad, pad), dilation, groups=x.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shifted_depthwise(x: Map, w: Array, stride: int, dilation: int) -> Map:
    kernel = w.shape[0]
    out = -(-x.shape[1] // stride)
    views = _shifts(_pad(x, (kernel - 1) * dilation // 2), kernel, dilation, stride, out)
    return functools.reduce(jnp.add, [view * w[i, j] for (i, j), view in views])


def _shifted_forward(x, w, stride, dilation):
    return _shifted_depthwise(x, w, stride, dilation), (x, w)


def _shifted_backward(stride, dilation, residuals, g):
    x, w = residuals
    kernel, size, out = w.shape[0], x.shape[1], g.shape[1]
    pad = (kernel - 1) * dilation // 2
    rest = size - 1 - stride * (out - 1)
    spread = g
    if stride > 1:
        spread = lax.pad(g, 0.0, ((0, 0, 0), (0, rest, stride - 1), (0, rest, stride - 1), (0, 0, 0)))
    views = _shifts(_pad(spread, pad), kernel, dilation, 1, size)
    dx = functools.reduce(jnp.add, [view * w[kernel - 1 - i, kernel - 1 - j] for (i, j), view in views])
    # one pass over the map for all taps: a variadic reduction over height and width, then the batch
    products = tuple(view * g for _, view in _shifts(_pad(x, pad), kernel, dilation, stride, out))
    zeros = (jnp.zeros((), x.dtype),) * len(products)
    sums = lax.reduce(products, zeros, lambda a, b: tuple(u + v for u, v in zip(a, b, strict=True)), (1, 2))
    dw = jnp.stack([s.sum(0) for s in sums]).reshape(w.shape)
    return dx, dw


_shifted_depthwise.defvjp(_shifted_forward, _shifted_backward)


def _pad(x: Map, pad: int, value: float = 0.0) -> Map:
    return jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=value)


def _shifts(padded: Map, kernel: int, dilation: int, stride: int, out: int):
    """The views of a padded map that meet each tap of a kernel, with the tap."""
    span = stride * (out - 1) + 1
    return [
        (
            (i, j),
            padded[
                :, i * dilation : i * dilation + span : stride, j * dilation : j * dilation + span : stride
            ],
        )
        for i in range(kernel)
        for j in range(kernel)
    ]


def max_pool(x: Map, stride: int) -> Map:
    """The maximum over 3x3 windows, padding 1; the gradient goes to the first of several, as in PyTorch."""
    if _on_cpu():
        return _separable_pool(x, stride, _first_maximum, -jnp.inf)
    return lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    )


def average_pool(x: Map, stride: int) -> Map:
    """The mean over 3x3 windows, padding 1, of the pixels inside the map."""
    if _on_cpu():
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
    padded, out = _pad(x, 1, neutral), -(-x.shape[1] // stride)
    span = stride * (out - 1) + 1
    rows = functools.reduce(combine, [padded[:, :, i : i + span : stride] for i in range(3)])
    return functools.reduce(combine, [rows[:, i : i + span : stride] for i in range(3)])


def _first_maximum(a: Array, b: Array) -> Array:
    """The maximum, NaN if one is, whose gradient goes to `a` if they are equal (that of jnp.maximum is shared)."""
    return jnp.where((b > a) | jnp.isnan(b), b, a)


@jax.custom_vjp
def batch_norm(x: Map, scale: Vector, bias: Vector) -> Map:
    """Normalises each channel by the statistics of the batch (biased variance, epsilon 1e-5)."""
    mean, inverse = _moments(x)
    gain = inverse * scale
    return x * gain + (bias - mean * gain)


def _moments(x: Map) -> tuple[Vector, Vector]:
    """Mean and inverse deviation of each channel, in one pass over the map."""
    mean = x.mean((0, 1, 2))
    variance = jnp.maximum((x * x).mean((0, 1, 2)) - mean * mean, 0.0)
    return mean, lax.rsqrt(variance + _EPSILON)


def _norm_forward(x, scale, bias):
    return batch_norm(x, scale, bias), (x, scale)


def _norm_backward(residuals, g):
    x, scale = residuals
    mean, inverse = _moments(x)
    count = x.shape[0] * x.shape[1] * x.shape[2]
    dbias = g.sum((0, 1, 2))
    dscale = ((g * x).sum((0, 1, 2)) - mean * dbias) * inverse
    # dx = gain (g - dbias / n - normalised * dscale / n), as g * a + x * b + c
    gain = inverse * scale
    b = -gain * inverse * dscale / count
    c = -gain * dbias / count - mean * b
    return g * gain + x * b + c, dscale, dbias


batch_norm.defvjp(_norm_forward, _norm_backward)


def layer_norm(x: Float[Array, "... channel"], scale: Vector, bias: Vector) -> Float[Array, "... channel"]:
    """Normalises the channels of each token (epsilon 1e-5)."""
    mean = x.mean(-1, keepdims=True)
    centred = x - mean
    variance = (centred * centred).mean(-1, keepdims=True)
    return centred * lax.rsqrt(variance + _EPSILON) * scale + bias


def attention(
    q: Float[Array, "batch token head c"], k: Array, v: Array
) -> Float[Array, "batch token head c"]:
    """Softmax attention, head by head."""
    batch, tokens, heads, width = q.shape

    def one(qkv):
        q, k, v = qkv
        return jax.nn.softmax((q * width**-0.5) @ k.T, axis=-1) @ v

    split = [t.transpose(0, 2, 1, 3).reshape(batch * heads, tokens, width) for t in (q, k, v)]
    # on the CPU one matrix of attention at a time stays in cache, and is recomputed rather than kept
    mapped = functools.partial(lax.map, jax.checkpoint(one)) if _on_cpu() else jax.vmap(one)
    out = mapped(tuple(split))
    return out.reshape(batch, heads, tokens, width).transpose(0, 2, 1, 3)
