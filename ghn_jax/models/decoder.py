"""Decodes node embeddings into the flat parameter vector of a network.

How a template is decoded is the part of a GHN that `GHNConfig.decoder` names: `ghn_jax.models.full_rank` or
`ghn_jax.models.low_rank`.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021, Section 3.1, Appendix B.1.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ghn_jax.executor.layouts import ROW
from ghn_jax.models import full_rank, low_rank
from ghn_jax.models.config import GHNConfig
from ghn_jax.models.linear import Embeddings, Layer, Weights
from ghn_jax.models.mlp import uniform_init
from ghn_jax.models.templates import ROWS_PER_STEP, Plan, Template

Rows = Float[Array, "row 8"]


class Decoding(NamedTuple):
    """A way to decode templates.

    Attributes:
      layers: what it consists of, by public name.
      select: the weights, or parts of them, that a template is decoded with.
      decode: one template for each of a few nodes, (node, y, x, in, out); of a vector, (node, kind, out).
    """

    layers: Callable[[GHNConfig], dict[str, Layer]]
    select: Callable[[GHNConfig, Template, Weights], Weights]
    decode: Callable[[GHNConfig, Template, Weights, Embeddings], Array]


DECODINGS = {
    name: Decoding(module.layers, module.select, module.decode_template)
    for name, module in (("full_rank", full_rank), ("low_rank", low_rank))
}
"""By `GHNConfig.decoder`."""


class DecoderSpec(NamedTuple):
    """What is static in decoding."""

    config: GHNConfig
    templates: tuple[Template, ...]


class ParameterDecoder(nn.Module):
    """Predicts all parameters of a network from its node embeddings, fitted to their shapes and normalised [1]."""

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
        """All weights by public name, started as PyTorch's Linear and Conv2d, or small."""
        weights = {}
        for name, layer in DECODINGS[self.config.decoder].layers(self.config).items():
            start = uniform_init(layer.fan_in, gain=0.2 if layer.is_small else 1.0)
            start_bias = nn.initializers.zeros if layer.is_small else start
            weights[f"{name}.weight"] = self.param(f"{name}.weight", start, layer.kernel)
            if layer.bias is not None:
                weights[f"{name}.bias"] = self.param(f"{name}.bias", start_bias, layer.bias)
        return weights


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def decode(spec: DecoderSpec, weights: Weights, nodes: Embeddings, plan: Plan) -> Rows:
    """Decodes templates chunk by chunk into a bank, then gathers the flat vector from it.

    The loops run for as long as this network needs, hence the hand-written derivative.
    """
    size = plan.rows.shape[0]
    bank = jnp.zeros((size, ROW), nodes.dtype)
    for t, template in enumerate(spec.templates):
        own = DECODINGS[spec.config.decoder].select(spec.config, template, weights)

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
    template, decoding = spec.templates[t], DECODINGS[spec.config.decoder]
    own, put_back = jax.vjp(functools.partial(decoding.select, spec.config, template), weights)

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


def _decode_template(
    config: GHNConfig, template: Template, own: Weights, h: Embeddings, scales: Float[Array, " node"]
) -> Rows:
    """One template for each of a few nodes, as rows (node, y, x, in, out / 8)."""
    x = DECODINGS[config.decoder].decode(config, template, own, h)
    if template.role not in ("vector", "class_bias"):
        x = x.reshape(len(h), -1) * scales[:, None]
    return x.reshape(-1, ROW)
