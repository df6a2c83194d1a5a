"""The decoder of LoGAH: a weight is the product of two matrices, and only these are decoded [1].

  W[o, y, i, x] = sum_r A[r, o height + y] B[r, i width + x],   (A, B) = code(h) F

where F, the same for all weights, has `channels` x `max_kernel` columns, the most that A and B have. The decoder grows
linearly with the channels that it reaches, not with their square, and none of them repeats.

All weights are decoded alike, those of classification layers too. Vectors are decoded with F as well: the paper keeps a
decoder of vectors of the size of a node embedding, which repeat.

[1] Zhou et al., LoGAH: Predicting 774-Million-Parameter Transformers using Graph HyperNetworks with 1/100 Parameters,
2024 (arXiv 2405.16287), Section 3.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ghn_jax.models.config import GHNConfig
from ghn_jax.models.linear import Embeddings, Layer, Weights, linear
from ghn_jax.models.templates import Template

_FACTORS = "decoder.factors"
FACTORS = f"{_FACTORS}.weight"
"""The name of F."""


def layers(config: GHNConfig) -> dict[str, Layer]:
    """All layers by name."""
    c, r, reach = config.hidden, config.rank, config.channels * config.max_kernel
    return {
        "decoder.code.0": Layer(c, (c, 4 * c), (4 * c,)),
        "decoder.code.2": Layer(4 * c, (4 * c, 8 * c), (8 * c,)),
        "decoder.code.4": Layer(8 * c, (8 * c, 2 * r * r), (2 * r * r,)),
        _FACTORS: Layer(r, (r, reach), None),  # a bias would be alike in all rows of A, which then has rank 1
        "decoder_1d.fc.0": Layer(c, (c, 2 * c), (2 * c,)),
        "decoder_1d.fc.2": Layer(2 * c, (2 * c, 2 * r), (2 * r,)),
    }


def select(config: GHNConfig, template: Template, weights: Weights) -> Weights:
    """The weights, or parts of them, that a template is decoded with."""
    is_vector = template.role in ("vector", "class_bias")
    prefix = "decoder_1d" if is_vector else "decoder.code"
    own = {name: w for name, w in weights.items() if name.startswith(prefix)}
    rows = max(template.height * template.outputs, template.width * template.inputs)
    return own | {FACTORS: weights[FACTORS][:, :rows]}


def decode_template(
    config: GHNConfig, template: Template, w: Weights, h: Embeddings
) -> Float[Array, "node y x i o"]:
    """One template for each of a few nodes; of a vector, (node, kind, o)."""
    is_class = template.role in ("class_weight", "class_bias")
    outputs = config.num_classes if is_class else template.outputs
    if template.role in ("vector", "class_bias"):
        x = _decode_vectors(config, w, h, outputs)
        x = x[:, 1] if is_class else x
    else:
        a, b = decode_codes(w, h).swapaxes(0, 1)
        over, under = (1, outputs) if template.role == "pos_enc" else (outputs, template.inputs)
        a = factor(w, a, over, template.height)
        b = factor(w, b, under, template.width)
        x = jnp.einsum("nroy,nrix->nyxio", a, b)
        x = x.swapaxes(-1, -2) if template.role == "pos_enc" else x  # (1, C, H, W): channels are its inputs
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, template.outputs - x.shape[-1])])


def decode_codes(w: Weights, h: Embeddings) -> Float[Array, "node 2 r r"]:
    """The codes of A and B."""
    x = jax.nn.relu(linear(w, "decoder.code.0", h))
    x = linear(w, "decoder.code.4", jax.nn.relu(linear(w, "decoder.code.2", x)))
    rank = len(w[FACTORS])
    return x.reshape(len(h), 2, rank, rank)


def factor(
    w: Weights, code: Float[Array, "node r r"], channels: int, size: int
) -> Float[Array, "node r c k"]:
    """A or B, for so many channels and a kernel of this height or width."""
    columns = w[FACTORS][:, : channels * size]
    return (code @ columns).reshape(*code.shape[:2], channels, size)


def _decode_vectors(config: GHNConfig, w: Weights, h: Embeddings, channels: int) -> Float[Array, "node 2 c"]:
    """Per node a weight-like and a bias-like vector."""
    code = linear(w, "decoder_1d.fc.2", jax.nn.relu(linear(w, "decoder_1d.fc.0", h)))
    x = factor(w, code.reshape(len(h), 2, -1), channels, 1)[..., 0]
    if not config.normalize:
        return x
    return jnp.stack([2.0 * jax.nn.sigmoid(0.5 * x[:, 0]), jnp.tanh(0.2 * x[:, 1])], axis=1)


def decode_vectors(config: GHNConfig, weights: Weights, h: Embeddings) -> Float[Array, "node 2 c"]:
    """Weight-like and bias-like vectors of all nodes, as long as the longest of channels and classes."""
    return _decode_vectors(config, weights, h, max(config.channels, config.num_classes))
