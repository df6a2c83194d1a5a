"""Decodes node embeddings into the flat parameter vector of a network.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021, Section 3.1, Appendix B.1.
[2] Knyazev et al., Can We Scale Transformers to Predict Parameters of Diverse ImageNet Models?, ICML 2023.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from ghn_jax.executor.layouts import ROW
from ghn_jax.models.config import GHNConfig
from ghn_jax.models.mlp import uniform_init
from ghn_jax.models.templates import ROWS_PER_STEP, Plan, Template
from ghn_jax.models.windows import WINDOWS

Embeddings = Float[Array, "node c"]
Rows = Float[Array, "row 8"]
Weights = dict[str, Array]


_LAST = ("decoder.conv.2", "decoder.class_layer_predictor.1", "decoder_1d.fc.2")


class DecoderSpec(NamedTuple):
    """What is static in decoding."""

    config: GHNConfig
    templates: tuple[Template, ...]


class ParameterDecoder(nn.Module):
    """Predicts all parameters of a network from its node embeddings, fitted to their shapes and normalised.

    Three decoders share the work: a convolutional one for tensors of rank two and more, whose classification
    head mixes output channels into classes, and an MLP for vectors, whose head makes classification biases. Kernels are
    stored with the position first and output channels last, so that the window a template needs is contiguous.
    """

    config: GHNConfig

    @nn.compact
    def __call__(self, nodes: Embeddings, plan: Plan, templates: tuple[Template, ...]) -> Rows:
        """The flat parameter vector, in rows.

        Args:
          nodes: embeddings of one network's nodes.
          plan: its decoding plan, from `ghn_jax.models.templates.make_plan`.
          templates: the forms that the plan was made for.
        """
        return decode(DecoderSpec(self.config, templates), self._weights(), nodes, plan)

    def _weights(self) -> Weights:
        """All weights by public name, started as PyTorch's Linear and Conv2d, or with small last layers [2]."""
        c, s, full, classes = (
            self.config.hidden,
            self.config.max_kernel,
            self.config.channels,
            self.config.num_classes,
        )
        shapes = {  # fan-in, kernel, bias
            "decoder.fc.0": (c, (s, s, c, 4 * c), (s, s, 4 * c)),
            "decoder.conv.0": (4 * c, (4 * c, 8 * c), (8 * c,)),
            "decoder.conv.2": (8 * c, (8 * c, full, full), (full, full)),
            "decoder.class_layer_predictor.1": (full, (full, classes), (classes,)),
            "decoder_1d.fc.0": (c, (c, 2 * c), (2 * c,)),
            "decoder_1d.fc.2": (2 * c, (2 * c, 2 * full), (2 * full,)),
            "bias_class.1": (full, (full, classes), (classes,)),
        }
        small = _LAST if self.config.start == "transformer" else ()
        weights = {}
        for name, (fan_in, kernel, bias) in shapes.items():
            start = uniform_init(fan_in, gain=0.2 if name in small else 1.0)
            start_bias = nn.initializers.zeros if name in small else start
            weights[f"{name}.weight"] = self.param(f"{name}.weight", start, kernel)
            weights[f"{name}.bias"] = self.param(f"{name}.bias", start_bias, bias)
        return weights


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def decode(spec: DecoderSpec, weights: Weights, nodes: Embeddings, plan: Plan) -> Rows:
    """Decodes templates chunk by chunk into a bank, then gathers the flat vector from it.

    The loops run for as long as this network needs, hence the hand-written derivative.
    """
    size = plan.rows.shape[0]
    bank = jnp.zeros((size, ROW), nodes.dtype)
    for t, template in enumerate(spec.templates):
        own = _select(spec.config, template, weights)

        def decode_chunk(i, bank, t=t, template=template, own=own):
            owners, scales, row = _chunk(plan, t, template, i)
            rows = _decode_template(spec.config, template, own, nodes[owners], scales)
            return lax.dynamic_update_slice_in_dim(bank, rows, row, axis=0)

        bank = lax.fori_loop(0, _num_chunks(plan, t, template), decode_chunk, bank)

    def gather(i, flat):
        index = lax.dynamic_slice(plan.rows, (i * ROWS_PER_STEP,), (ROWS_PER_STEP,))
        return lax.dynamic_update_slice_in_dim(flat, bank[index], i * ROWS_PER_STEP, axis=0)

    return lax.fori_loop(0, _num_gathers(plan), gather, jnp.zeros_like(bank))


def _forward(spec: DecoderSpec, weights: Weights, nodes: Embeddings, plan: Plan):
    return decode(spec, weights, nodes, plan), (weights, nodes, plan)


def _backward(spec: DecoderSpec, residuals, gradient: Rows):
    weights, nodes, plan = residuals

    def scatter(i, bank):
        start = i * ROWS_PER_STEP
        index = lax.dynamic_slice(plan.rows, (start,), (ROWS_PER_STEP,))
        return bank.at[index].add(lax.dynamic_slice_in_dim(gradient, start, ROWS_PER_STEP))

    bank = lax.fori_loop(0, _num_gathers(plan), scatter, jnp.zeros_like(gradient))
    gradients = jax.tree.map(jnp.zeros_like, weights), jnp.zeros_like(nodes)
    for t in range(len(spec.templates)):
        add = functools.partial(_add_gradients, spec, t, weights, nodes, plan, bank)
        # a network needs few of the templates
        is_used = plan.starts[t + 1] > plan.starts[t]
        gradients = lax.cond(is_used, add, lambda unchanged: unchanged, gradients)
    return *gradients, None


decode.defvjp(_forward, _backward)


def _add_gradients(
    spec: DecoderSpec,
    t: int,
    weights: Weights,
    nodes: Embeddings,
    plan: Plan,
    d_bank: Rows,
    gradients: tuple[Weights, Embeddings],
) -> tuple[Weights, Embeddings]:
    """The gradients of weights and embeddings, with what flows back through template number t."""
    template = spec.templates[t]
    own, put_back = jax.vjp(functools.partial(_select, spec.config, template), weights)

    def pull_back_chunk(i, carry):
        d_own, d_nodes = carry
        owners, scales, row = _chunk(plan, t, template, i)
        _, pull_back = jax.vjp(
            lambda own, h: _decode_template(spec.config, template, own, h, scales), own, nodes[owners]
        )
        d_rows = lax.dynamic_slice_in_dim(d_bank, row, template.chunk * template.rows)
        d_own_chunk, d_h = pull_back(d_rows)
        return jax.tree.map(jnp.add, d_own, d_own_chunk), d_nodes.at[owners].add(d_h)

    d_weights, d_nodes = gradients
    zeros = jax.tree.map(jnp.zeros_like, own)
    d_own, d_nodes = lax.fori_loop(0, _num_chunks(plan, t, template), pull_back_chunk, (zeros, d_nodes))
    return jax.tree.map(jnp.add, d_weights, put_back(d_own)[0]), d_nodes


def _num_chunks(plan: Plan, t: int, template: Template) -> ArrayLike:
    return (plan.starts[t + 1] - plan.starts[t]) // template.chunk


def _num_gathers(plan: Plan) -> ArrayLike:
    return -(-plan.num_rows // ROWS_PER_STEP)


def _chunk(plan: Plan, t: int, template: Template, i: Array) -> tuple[Array, Array, Array]:
    """Owners and scales of chunk number i of a template, and its first row in the bank."""
    start = (plan.starts[t] + i * template.chunk,)
    owners = lax.dynamic_slice(plan.nodes, start, (template.chunk,))
    scales = lax.dynamic_slice(plan.scales, start, (template.chunk,))
    return owners, scales, plan.row_starts[t] + i * template.chunk * template.rows


def _select(config: GHNConfig, template: Template, weights: Weights) -> Weights:
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


def _decode_template(
    config: GHNConfig, template: Template, w: Weights, h: Embeddings, scales: Float[Array, " node"]
) -> Rows:
    """Decodes one template for each of a few nodes, as rows (node, y, x, in, out / 8)."""
    if template.role in ("vector", "class_bias"):
        return _decode_vector(config, template, w, h).reshape(-1, ROW)
    c = h.shape[-1]
    fc, fc_bias = w["decoder.fc.0.weight"], w["decoder.fc.0.bias"]
    positions = fc.shape[0] * fc.shape[1]
    fc = fc.reshape(positions, c, -1).swapaxes(0, 1).reshape(c, -1)
    x = jax.nn.relu((h @ fc).reshape(len(h), positions, -1) + fc_bias.reshape(positions, -1))
    last = w["decoder.conv.2.weight"]
    x = _channels(w, x.reshape(len(h) * positions, -1), last, w["decoder.conv.2.bias"])
    if template.role == "class_weight":
        x = x.reshape(len(h), *last.shape[1:])  # node, in, out
        x = (
            jax.nn.relu(x) @ w["decoder.class_layer_predictor.1.weight"]
            + w["decoder.class_layer_predictor.1.bias"]
        )
        x = _pad_classes(x, template)
    return (x.reshape(len(h), -1) * scales[:, None]).reshape(-1, ROW)


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
    x = jax.nn.relu(x @ w["decoder.conv.0.weight"] + w["decoder.conv.0.bias"])
    return x @ last.reshape(last.shape[0], -1) + last_bias.reshape(-1)


def decode_class_weight(
    weights: Weights, h: Embeddings, position: Int[Array, " node"], scales: Float[Array, " node"]
) -> Float[Array, "node i label"]:
    """Decodes classification weights, one for each of a few nodes, from a single position of their kernels."""
    x = decode_positions(weights, h, position, jnp.ones_like(scales))
    x = jax.nn.relu(x) @ weights["decoder.class_layer_predictor.1.weight"]
    return (x + weights["decoder.class_layer_predictor.1.bias"]) * scales[:, None, None]


def decode_vectors(
    config: GHNConfig, weights: Weights, h: Embeddings
) -> tuple[Float[Array, "node 2 c"], Float[Array, "node label"]]:
    """Weight-like and bias-like vectors, and classification biases, of all nodes."""
    bias = Template("class_bias", 1, 1, 1, config.num_classes)
    vectors = _decode_vector(config, Template("vector", 1, 1, 2, config.channels), weights, h)
    return vectors, _decode_vector(config, bias, weights, h)


def _decode_vector(config: GHNConfig, template: Template, w: Weights, h: Embeddings) -> Array:
    """Per node a weight-like and a bias-like vector; only the latter, mapped to classes, for 'class_bias'."""
    x = jax.nn.relu(h @ w["decoder_1d.fc.0.weight"] + w["decoder_1d.fc.0.bias"])
    x = (x @ w["decoder_1d.fc.2.weight"] + w["decoder_1d.fc.2.bias"]).reshape(len(h), 2, -1)
    weight, bias = x[:, 0], x[:, 1]
    if template.role == "class_bias":
        bias = jax.nn.relu(bias) @ w["bias_class.1.weight"] + w["bias_class.1.bias"]
        return _pad_classes(jnp.tanh(0.2 * bias) if config.normalize else bias, template)
    if config.normalize:
        weight, bias = 2.0 * jax.nn.sigmoid(0.5 * weight), jnp.tanh(0.2 * bias)
    return jnp.stack([weight, bias], axis=1)


def _pad_classes(x: Array, template: Template) -> Array:
    pad = [(0, 0)] * (x.ndim - 1) + [(0, template.outputs - x.shape[-1])]
    return jnp.pad(x, pad)
