"""The decoder of GHN-1, -2 and -3: position by position of a kernel, all channels of one at once.

Kernels are stored with the position first and output channels last, so that the window a template needs is contiguous.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021, Section 3.1, Appendix B.1.
[2] Knyazev et al., Can We Scale Transformers to Predict Parameters of Diverse ImageNet Models?, ICML 2023.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ghn_jax.models.config import GHNConfig
from ghn_jax.models.linear import Embeddings, Layer, Weights, linear
from ghn_jax.models.templates import Template
from ghn_jax.models.windows import WINDOWS


def layers(config: GHNConfig) -> dict[str, Layer]:
    """All layers by public name; the last ones of a transformer's decoders start small [2]."""
    c, s, full, classes = config.hidden, config.max_kernel, config.channels, config.num_classes
    small = config.start == "transformer"
    return {
        "decoder.fc.0": Layer(c, (s, s, c, 4 * c), (s, s, 4 * c)),
        "decoder.conv.0": Layer(4 * c, (4 * c, 8 * c), (8 * c,)),
        "decoder.conv.2": Layer(8 * c, (8 * c, full, full), (full, full), small),
        "decoder.class_layer_predictor.1": Layer(full, (full, classes), (classes,), small),
        "decoder_1d.fc.0": Layer(c, (c, 2 * c), (2 * c,)),
        "decoder_1d.fc.2": Layer(2 * c, (2 * c, 2 * full), (2 * full,), small),
        "bias_class.1": Layer(full, (full, classes), (classes,)),
    }


def select(config: GHNConfig, template: Template, weights: Weights) -> Weights:
    """The weights, or parts of them, that a template is decoded with."""
    if template.role in ("vector", "class_bias"):
        prefixes = ("decoder_1d", "bias_class") if template.role == "class_bias" else ("decoder_1d",)
        return {name: w for name, w in weights.items() if name.startswith(prefixes)}
    own = {name: w for name, w in weights.items() if name.startswith("decoder.conv.0")}
    window = WINDOWS[config.window]
    rows, columns = (window.part(size, config.max_kernel) for size in (template.height, template.width))
    for kind in ("weight", "bias"):
        own[f"decoder.fc.0.{kind}"] = weights[f"decoder.fc.0.{kind}"][rows, columns]
        last = weights[f"decoder.conv.2.{kind}"]
        if template.role == "class_weight":
            name = f"decoder.class_layer_predictor.1.{kind}"
            own[name] = weights[name]
        elif template.role == "pos_enc":  # (1, C, H, W): the channels are the input axis
            last = last[..., :1].swapaxes(-1, -2)
        else:
            last = last[..., : template.inputs, : template.outputs]
        own[f"decoder.conv.2.{kind}"] = last
    return own


def decode_template(
    config: GHNConfig, template: Template, w: Weights, h: Embeddings
) -> Float[Array, "node y x i o"]:
    """One template for each of a few nodes; of a vector, (node, kind, o)."""
    if template.role in ("vector", "class_bias"):
        return _decode_vector(config, template, w, h)
    c = h.shape[-1]
    fc, fc_bias = w["decoder.fc.0.weight"], w["decoder.fc.0.bias"]
    positions = fc.shape[0] * fc.shape[1]
    fc = fc.reshape(positions, c, -1).swapaxes(0, 1).reshape(c, -1)
    x = jax.nn.relu((h @ fc).reshape(len(h), positions, -1) + fc_bias.reshape(positions, -1))
    last = w["decoder.conv.2.weight"]
    x = _channels(w, x.reshape(len(h) * positions, -1), last, w["decoder.conv.2.bias"])
    if template.role == "class_weight":
        x = x.reshape(len(h), *last.shape[1:])  # node, in, out
        x = linear(w, "decoder.class_layer_predictor.1", jax.nn.relu(x))
        x = _pad_classes(x, template)
    return x


def decode_positions(
    weights: Weights, h: Embeddings, position: Int[Array, " node"], scales: Float[Array, " node"]
) -> Float[Array, "node i o"]:
    """Decodes a single kernel position for each of a few nodes, whatever the size of their kernels.

    Args:
      weights: the decoder's, by public name; the last layer's may be cut to the channels that are wanted.
      h: embeddings of the nodes.
      position: y * max_kernel + x.
      scales: factors on the result.
    """
    fc, fc_bias = weights["decoder.fc.0.weight"], weights["decoder.fc.0.bias"]
    fc, fc_bias = fc.reshape(-1, *fc.shape[2:]), fc_bias.reshape(-1, fc_bias.shape[-1])
    x = jax.nn.relu(jnp.einsum("nc,ncd->nd", h, fc[position]) + fc_bias[position])
    last = weights["decoder.conv.2.weight"]
    x = _channels(weights, x, last, weights["decoder.conv.2.bias"])
    return x.reshape(len(h), *last.shape[1:]) * scales[:, None, None]


def _channels(w: Weights, x: Array, last: Array, last_bias: Array) -> Array:
    """The two 1x1 convolutions of the decoder, which treat every position alike."""
    x = jax.nn.relu(linear(w, "decoder.conv.0", x))
    return x @ last.reshape(last.shape[0], -1) + last_bias.reshape(-1)


def decode_class_weight(
    weights: Weights, h: Embeddings, position: Int[Array, " node"], scales: Float[Array, " node"]
) -> Float[Array, "node i label"]:
    """Decodes classification weights, one for each of a few nodes, from a single position of their kernels."""
    x = decode_positions(weights, h, position, jnp.ones_like(scales))
    return linear(weights, "decoder.class_layer_predictor.1", jax.nn.relu(x)) * scales[:, None, None]


def decode_vectors(
    config: GHNConfig, weights: Weights, h: Embeddings
) -> tuple[Float[Array, "node 2 c"], Float[Array, "node label"]]:
    """Weight-like and bias-like vectors, and classification biases, of all nodes."""
    bias = Template("class_bias", 1, 1, 1, config.num_classes)
    vectors = _decode_vector(config, Template("vector", 1, 1, 2, config.channels), weights, h)
    return vectors, _decode_vector(config, bias, weights, h)


def _decode_vector(config: GHNConfig, template: Template, w: Weights, h: Embeddings) -> Array:
    """Per node a weight-like and a bias-like vector; only the latter, mapped to classes, for 'class_bias'."""
    x = jax.nn.relu(linear(w, "decoder_1d.fc.0", h))
    x = linear(w, "decoder_1d.fc.2", x).reshape(len(h), 2, -1)
    weight, bias = x[:, 0], x[:, 1]
    if template.role == "class_bias":
        bias = linear(w, "bias_class.1", jax.nn.relu(bias))
        return _pad_classes(jnp.tanh(0.2 * bias) if config.normalize else bias, template)
    if config.normalize:
        weight, bias = 2.0 * jax.nn.sigmoid(0.5 * weight), jnp.tanh(0.2 * bias)
    return jnp.stack([weight, bias], axis=1)


def _pad_classes(x: Array, template: Template) -> Array:
    pad = [(0, 0)] * (x.ndim - 1) + [(0, template.outputs - x.shape[-1])]
    return jnp.pad(x, pad)
