"""What is done to predicted parameters before they are trained.

A GHN repeats the channels that it decodes, and what is equal stays equal under gradient descent: noise tells repeated
channels apart. Late layers are predicted worse than early ones, and may be made orthogonal instead [1].

Both change the weights of convolutions and linear layers, in any tree of parameters in Flax's layout, output channels
last. The last layer of all is best left out: `layer_names` names the others in the order of the forward pass.

[1] Knyazev, Pretraining a Neural Network before Knowing Its Architecture, ICML 2022 workshop (arXiv 2207.10049).
"""

import math
import zlib
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ghn_jax.graphs import PRIMITIVES, Graph

Matrix = Float[np.ndarray, "row column"]

_WEIGHTED = frozenset(PRIMITIVES.index(name) for name in ("conv", "sep_conv", "dil_conv"))


def layer_names(graph: Graph, first: int = 0) -> list[str]:
    """The weights of convolutions and linear layers, by name, from number `first` on and without the last one."""
    names = [
        name for name, primitive in zip(graph.names, graph.primitives, strict=True) if primitive in _WEIGHTED
    ]
    return [name for name in names[first:-1] if name]


def add_noise(
    params: Any, beta: float, seed: int = 0, *, layers: Collection[str] | None = None, beyond: int = 0
) -> Any:
    """Adds noise to weights, w + beta * std(r) * n, where n is standard normal and r the correlations in w [1].

    Args:
      params: a tree of parameters.
      beta: 1e-5 in the public code.
      seed: of the noise; that of a tensor depends on its name besides.
      layers: names of the weights to change, joined by dots as in `layer_names`; None for all of two or four axes.
      beyond: channels up to this one are left alone: as many as the GHN decodes, to change repeated ones only.
    """

    def change(name: str, kernel: np.ndarray) -> np.ndarray:
        if max(kernel.shape[-2:]) <= beyond:
            return kernel
        rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
        changed = np.array(kernel, np.float32)
        part = changed[..., beyond:, beyond:]
        part += beta * correlation_spread(_as_matrix(kernel)) * rng.standard_normal(part.shape, np.float32)
        return changed

    return _changed(params, layers, change)


def orthogonalize(params: Any, *, layers: Collection[str] | None = None, beyond: int = 0) -> Any:
    """Puts an orthogonal matrix, the Q of its QR decomposition, in place of each weight [1].

    Args:
      params, layers: as in `add_noise`.
      beyond: weights of at most as many channels are left alone.
    """

    def change(name: str, kernel: np.ndarray) -> np.ndarray:
        del name
        if max(kernel.shape[-2:]) <= beyond:
            return kernel
        return _as_kernel(_orthogonal(_as_matrix(kernel)), kernel.shape)

    return _changed(params, layers, change)


def correlation_spread(matrix: Matrix) -> float:
    """Standard deviation of the correlations of all two vectors along the longer side of a matrix.

    There are as many as pairs of rows; their sum and the sum of their squares take no more than the matrix itself.
    """
    tall = np.asarray(matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T, np.float64)
    centred = tall - tall.mean(1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 0)
    pairs = len(unit) ** 2
    mean = np.square(unit.sum(0)).sum() / pairs
    variance = np.square(unit.T @ unit).sum() / pairs - mean**2
    return math.sqrt(max(variance, 0.0) * pairs / max(pairs - 1, 1))


def _changed(
    params: Any, layers: Collection[str] | None, change: Callable[[str, np.ndarray], np.ndarray]
) -> Any:
    """The tree with some weights changed; ValueError for layers that it lacks."""
    paths, tree = jax.tree.flatten_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
    missing = sorted(set(layers or ()) - set(names))
    if missing:
        raise ValueError(
            f"`layers` names {missing[0]!r}, which `params` lacks: it has {', '.join(names[:3])}, ..."
        )
    leaves = []
    for name, (_, leaf) in zip(names, paths, strict=True):
        wanted = np.ndim(leaf) in (2, 4) and (layers is None or name in layers)
        leaves.append(jnp.asarray(change(name, np.asarray(leaf)), leaf.dtype) if wanted else leaf)
    return jax.tree.unflatten(tree, leaves)


def _as_matrix(kernel: np.ndarray) -> Matrix:
    """(out, in height width), as the public code sees a weight (height, width, in, out)."""
    return np.moveaxis(kernel, (-1, -2), (0, 1)).reshape(kernel.shape[-1], -1).astype(np.float32)


def _as_kernel(matrix: Matrix, shape: tuple[int, ...]) -> np.ndarray:
    return np.moveaxis(matrix.reshape(shape[-1], shape[-2], *shape[:-2]), (0, 1), (-1, -2))


def _orthogonal(matrix: Matrix) -> Matrix:
    """Q, with a positive diagonal of R; of the transpose if the matrix is wide."""
    wide = matrix.shape[0] < matrix.shape[1]
    q, r = np.linalg.qr(matrix.T if wide else matrix)
    q = q * np.sign(np.diag(r))
    return q.T if wide else q
