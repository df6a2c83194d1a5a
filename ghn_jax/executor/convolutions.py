"""Convolutions, lowered for the platform.

On GPU and TPU XLA's own dense convolutions are right. On the CPU most of their gradients are slow: there they are
written as products of matrices and transposed convolutions. Depthwise ones are slow everywhere (50 times on a CPU; on
an H200 the gradients of a dilated one take 10 ms, and 0.2 so), and are written as shifted multiply-adds. All forms
compute the same function.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Map = Float[Array, "batch height width channel"]
Pair = tuple[int, int]

_NHWC = ("NHWC", "HWIO", "NHWC")
_CACHE = 13 << 19  # bytes


def on_cpu() -> bool:
    """Whether kernels are to be lowered for the CPU."""
    return jax.default_backend() == "cpu"


def pointwise(x: Map, w: Float[Array, "channel out"]) -> Map:
    """A 1x1 convolution, as the product of two matrices."""
    return (x.reshape(-1, x.shape[-1]) @ w).reshape(*x.shape[:-1], w.shape[1])


def convolution(
    x: Map, w: Float[Array, "kh kw channel out"], stride: Pair, padding: Pair, relu: bool = False
) -> Map:
    """[ReLU,] a dense convolution; `stride` and `padding` (on both sides) are (vertical, horizontal)."""
    is_pointwise = w.shape[:2] == (1, 1) and padding == (0, 0)
    if relu and is_pointwise and stride == (1, 1) and on_cpu() and x.nbytes >= 3 * _CACHE:
        return _relu_pointwise(x, w[0, 0])
    x = jax.nn.relu(x) if relu else x
    if is_pointwise:
        return pointwise(x[:, :: stride[0], :: stride[1]], w[0, 0])
    if not on_cpu():
        return _native(x, w, stride, padding)
    if min(w.shape[:2]) > max(x.shape[1:3]):
        return _unrolled_convolution(x, w, stride, padding)
    return _dense_convolution(x, w, stride, padding)


@jax.custom_vjp
def _relu_pointwise(x: Map, w: Array) -> Map:
    """ReLU and a 1x1 convolution of a map larger than the cache, a few images at a time."""
    groups = _grouped(x)
    out = lax.map(lambda images: pointwise(jax.nn.relu(images), w), groups)
    return out.reshape(*x.shape[:3], -1)


def _relu_pointwise_forward(x, w):
    return _relu_pointwise(x, w), (x, w)


def _relu_pointwise_backward(residuals, g):
    x, w = residuals
    groups = _grouped(x)

    def add(dw: Array, pair: tuple[Map, Map]) -> tuple[Array, Map]:
        x, g = pair
        rectified, flat = jax.nn.relu(x).reshape(-1, w.shape[0]), g.reshape(-1, w.shape[1])
        return dw + rectified.T @ flat, jnp.where(x > 0, pointwise(g, w.T), 0.0)

    dw, dx = lax.scan(add, jnp.zeros_like(w), (groups, g.reshape(*groups.shape[:4], -1)))
    return dx.reshape(x.shape), dw


_relu_pointwise.defvjp(_relu_pointwise_forward, _relu_pointwise_backward)


def _grouped(x: Map) -> Float[Array, "group batch height width channel"]:
    """Images in groups that stay in cache."""
    fitting = max(1, _CACHE // (math.prod(x.shape[1:]) * x.dtype.itemsize))
    group = max(n for n in range(1, x.shape[0] + 1) if x.shape[0] % n == 0 and n <= fitting)
    return x.reshape(-1, group, *x.shape[1:])


def _native(x: Map, w: Array, stride: Pair, padding: Pair, dilation: int = 1, groups: int = 1) -> Map:
    return _padded(x, w, [(p, p) for p in padding], stride, dilation, groups)


def _padded(
    x: Map, w: Array, sides: Sequence[Pair], stride: Pair = (1, 1), dilation: int = 1, groups: int = 1
) -> Map:
    """XLA's convolution, with the padding before and after each axis."""
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
    return _dense_convolution(x, w, stride, padding), (x, w)


def _dense_backward(stride, padding, residuals, g):
    """Both gradients as forward convolutions on transposed operands, the form that XLA:CPU runs fast."""
    x, w = residuals
    if stride != (1, 1):
        return _strided_backward(x, w, g, stride, padding)
    near = (w.shape[0] - 1 - padding[0], w.shape[1] - 1 - padding[1])
    dx = _native(g, jnp.flip(w, (0, 1)).swapaxes(2, 3), (1, 1), near)
    dw = _native(x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), (1, 1), padding)
    return dx, dw.transpose(1, 2, 0, 3)


_dense_convolution.defvjp(_dense_forward, _dense_backward)


def _strided_backward(x: Map, w: Array, g: Map, stride: Pair, padding: Pair) -> tuple[Map, Array]:
    """Both gradients, phase by phase: pixels at one place between strides meet the same taps, at stride 1."""
    size = [-(-x.shape[1 + i] // stride[i]) for i in range(2)]  # of a phase, the largest
    kernel = jnp.pad(w, [*((0, max(0, stride[i] - w.shape[i])) for i in range(2)), (0, 0), (0, 0)])
    rows, d_kernel = [], jnp.zeros_like(kernel)
    for row in range(stride[0]):
        columns = []
        for column in range(stride[1]):
            pixels = x[:, row :: stride[0], column :: stride[1]]
            (down, top), (right, left) = (
                divmod(n + p, s) for n, p, s in zip((row, column), padding, stride, strict=True)
            )
            places = slice(top, None, stride[0]), slice(left, None, stride[1])
            taps = kernel[places]
            # pixel t meets output t + shift - u by tap u
            shift, out = (down, right), g.shape[1:3]
            reach = [taps.shape[i] - 1 - shift[i] for i in range(2)]
            sides = [(reach[i], size[i] - out[i] + shift[i]) for i in range(2)]
            columns.append(_padded(g, jnp.flip(taps, (0, 1)).swapaxes(2, 3), sides))
            sides = [(shift[i], out[i] - pixels.shape[1 + i] + reach[i]) for i in range(2)]
            d_taps = _padded(pixels.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), sides)
            d_kernel = d_kernel.at[places].set(d_taps.transpose(1, 2, 0, 3))
        rows.append(jnp.stack(columns, 3))
    dx = jnp.stack(rows, 2).reshape(x.shape[0], size[0] * stride[0], size[1] * stride[1], -1)
    return dx[:, : x.shape[1], : x.shape[2]], d_kernel[: w.shape[0], : w.shape[1]]


def depthwise(x: Map, w: Float[Array, "kh kw channel"], stride: int, dilation: int) -> Map:
    """A depthwise convolution with a square, odd kernel and padding that keeps the size at stride 1."""
    return _depthwise(x, w, stride, dilation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x: Map, w: Array, stride: int, dilation: int) -> Map:
    kernel = w.shape[0]
    out = -(-x.shape[1] // stride)
    views = _shifts(pad_map(x, (kernel - 1) * dilation // 2), kernel, dilation, stride, out)
    return functools.reduce(jnp.add, [view * w[i, j] for (i, j), view in views])


def _depthwise_forward(x, w, stride, dilation):
    return _depthwise(x, w, stride, dilation), (x, w)


def _depthwise_backward(stride, dilation, residuals, g):
    x, w = residuals
    kernel, size, out = w.shape[0], x.shape[1], g.shape[1]
    pad = (kernel - 1) * dilation // 2
    rest = size - 1 - stride * (out - 1)
    spread, zero = g, jnp.zeros((), g.dtype)
    if stride > 1:
        spread = lax.pad(g, zero, ((0, 0, 0), (0, rest, stride - 1), (0, rest, stride - 1), (0, 0, 0)))
    views = _shifts(pad_map(spread, pad), kernel, dilation, 1, size)
    dx = functools.reduce(jnp.add, [view * w[kernel - 1 - i, kernel - 1 - j] for (i, j), view in views])
    if not on_cpu():  # XLA makes one kernel of these sums
        views = _shifts(pad_map(x, pad), kernel, dilation, stride, out)
        return dx, jnp.stack([(view * g).sum((0, 1, 2)) for _, view in views]).reshape(w.shape)
    # one pass over the map for all taps: a variadic reduction over height and width, then the batch
    first = 1
    if stride == 1:  # the pixels of a row beside each other, to be added up several at a time
        x, g, first = x.transpose(0, 3, 1, 2), lax.optimization_barrier(g.transpose(0, 3, 1, 2)), 2
    x = lax.optimization_barrier(pad_map(x, pad, first=first))  # written once, not made again by every tap
    products = tuple(view * g for _, view in _shifts(x, kernel, dilation, stride, out, first))
    zeros = (zero,) * len(products)
    sums = lax.reduce(
        products, zeros, lambda a, b: tuple(u + v for u, v in zip(a, b, strict=True)), (first, first + 1)
    )
    dw = jnp.stack([s.sum(0) for s in sums]).reshape(w.shape)
    return dx, dw


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def pad_map(x: Map, pad: int, value: float = 0.0, first: int = 1) -> Map:
    """A map with a border of `value`; `first` is the axis of its height."""
    sides = [(pad, pad) if axis in (first, first + 1) else (0, 0) for axis in range(x.ndim)]
    return jnp.pad(x, sides, constant_values=value)


def _shifts(padded: Map, kernel: int, dilation: int, stride: int, out: int, first: int = 1):
    """The views of a padded map that meet each tap of a kernel, with the tap; `first` is the axis of its height."""
    span = stride * (out - 1) + 1
    taps = [slice(i * dilation, i * dilation + span, stride) for i in range(kernel)]
    before = (slice(None),) * first
    return [
        ((i, j), padded[(*before, row, column)])
        for i, row in enumerate(taps)
        for j, column in enumerate(taps)
    ]
