"""A meta-training step of GHN-3 against plain differentiation of the whole loss, from weights to penalty, in float64.

The plain computation shares the embedding of nodes with the step, and nothing after it: tensors are decoded one by one
as the paper writes it, the networks are plain Flax modules, and JAX differentiates all of it at once.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ghn_jax.deepnets.architectures import Architecture, Genotype
from ghn_jax.deepnets.lowering import lower
from ghn_jax.deepnets.networks import CellNetwork, to_params
from ghn_jax.executor.layouts import Parameter
from ghn_jax.executor.program import Lowered
from ghn_jax.graphs import PRIMITIVES, batch
from ghn_jax.models.config import GHNConfig, ghn3
from ghn_jax.models.ghn import GHN, encode
from ghn_jax.models.templates import deepnets_templates
from ghn_jax.training import meta, prepare
from ghn_jax.training.pmapped import replicate
from ghn_jax.training.recipes import RECIPES

CONFIG = ghn3(hidden=16, layers=2, heads=8)
"""GHN-3-T, but for a layer and three quarters of the width: channels are tiled."""

RECIPE = dataclasses.replace(RECIPES["ghn3"], norm_penalty=0.01, clip=1e9)
"""The penalty counts, and the optimiser's first momentum is a tenth of the gradient."""

IMAGES = (4, 32, 32, 3)
CELL = (("conv_1x1", 0), ("sep_conv_3x3", 1))
BASE = Architecture(Genotype(CELL, (2,), CELL, (2,)), 1, C_mult=1, stem_pool=True, preproc=False)
NETWORKS = (BASE, dataclasses.replace(BASE, fc_layers=2, fc_dim=64))


def predicted(config: GHNConfig, weights: Any, h: jax.Array, parameter: Parameter, kind: str) -> jax.Array:
    """One tensor in PyTorch's layout, from the embedding of its node."""

    def linear(name: str, x: jax.Array) -> jax.Array:
        return jnp.tensordot(x, weights[f"{name}.weight"], 1) + weights[f"{name}.bias"]

    shape = parameter.shape
    is_weight = not parameter.name.endswith("bias")
    if len(shape) == 1:
        vector = linear("decoder_1d.fc.2", jax.nn.relu(linear("decoder_1d.fc.0", h))).reshape(2, -1)[
            1 - is_weight
        ]
        if kind == "class":
            return jnp.tanh(0.2 * linear("bias_class.1", jax.nn.relu(vector)))
        vector = vector[np.arange(shape[0]) % config.channels]
        return 2 * jax.nn.sigmoid(0.5 * vector) if is_weight else jnp.tanh(0.2 * vector)
    fc = weights["decoder.fc.0.weight"]
    x = jax.nn.relu(jnp.einsum("c,yxcd->yxd", h, fc) + weights["decoder.fc.0.bias"])
    x = linear("decoder.conv.2", jax.nn.relu(linear("decoder.conv.0", x))).transpose(
        3, 2, 0, 1
    )  # out, in, y, x
    beta = 1 if len(shape) == 4 and shape[1] == 1 else 2
    scale = float(np.float32(math.sqrt(beta / math.prod(shape[1:]))))  # as plans keep it
    centre = config.max_kernel // 2
    if kind == "class":
        x = jax.nn.relu(x[:, :, centre, centre]).T  # in, out
        x = linear("decoder.class_layer_predictor.1", x)
        return scale * x[np.arange(shape[1]) % config.channels].T
    for axis, size in enumerate(shape[2:] or (1, 1)):
        start = centre - size // 2
        x = jax.lax.slice_in_dim(x, start, start + size, axis=2 + axis)
    out, inside = (np.arange(size) % config.channels for size in shape[:2])
    return scale * x[out][:, inside].reshape(shape)


def plain_loss(params: Any, network: Lowered, arch: Architecture, images: Any, labels: Any) -> jax.Array:
    """Cross entropy of the predicted network, and the penalty."""
    graphs = batch([encode(network.graph, CONFIG)])
    nodes: Any = GHN(CONFIG).apply({"params": params}, graphs.graphs, graphs.max_nodes, method="embed")
    classes = {p.name for p in network.parameters[-2:]}
    tensors = {}
    for p in network.parameters:
        kind = "class" if p.name in classes else PRIMITIVES[network.graph.primitives[p.node]]
        tensors[p.name] = predicted(CONFIG, params["decoder"], nodes[0, p.node], p, kind)
    logits: Any = CellNetwork(arch).apply({"params": to_params(tensors)}, images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss + RECIPE.norm_penalty * sum(jnp.linalg.norm(tensor) for tensor in tensors.values())


class Setting:
    """Weights, networks and images, and the step's own functions."""

    def __init__(self) -> None:
        self.devices = jax.local_devices()[:1]
        forms = deepnets_templates(CONFIG, 32)
        self.templates = tuple(
            f for f in forms if f.height == f.width == 1 or (f.height == 3 and f.inputs <= 4)
        )
        optimizer = RECIPE.make_optimizer(10)
        self.ghn = meta.make_ghn_step(CONFIG, self.templates, optimizer, self.devices, RECIPE)
        state = meta.init_state(CONFIG, optimizer, jax.random.key(0), RECIPE)
        params = jax.tree.map(lambda w: jnp.asarray(w, float), state.params)
        self.state = state._replace(params=params, opt_state=optimizer.init(params))
        rng = np.random.default_rng(0)
        self.images = jnp.asarray(rng.standard_normal(IMAGES))
        self.labels = jnp.asarray(rng.integers(0, 10, IMAGES[0]))
        self.networks = tuple(lower(arch) for arch in NETWORKS)

    def plain(self) -> Any:
        """The gradient by plain differentiation."""

        def loss(params: Any) -> jax.Array:
            losses = [
                plain_loss(params, network, arch, self.images, self.labels)
                for network, arch in zip(self.networks, NETWORKS, strict=True)
            ]
            return sum(losses, jnp.zeros(())) / len(losses)

        return jax.jit(jax.grad(loss))(self.state.params)

    def step(self) -> Any:
        """The gradient that a step hands to the optimiser."""
        prepared = prepare.prepare(self.networks, CONFIG, self.templates, num_devices=1)
        state, _ = meta.meta_step(
            self.ghn, replicate(self.state, self.devices), prepared, [self.images], [self.labels], None
        )
        return gradient_of(state)


def gradient_of(state: meta.TrainState) -> Any:
    moments = next(s for s in jax.tree.leaves(state.opt_state, is_leaf=has_mu) if has_mu(s))
    return jax.tree.map(lambda m: np.asarray(m)[0] * 10, moments.mu)


def has_mu(node: object) -> bool:
    return hasattr(node, "mu")


@pytest.fixture(scope="module")
def setting() -> Iterator[Setting]:
    jax.config.update("jax_enable_x64", True)  # in all threads
    yield Setting()
    jax.config.update("jax_enable_x64", False)


def test_gradient_of_a_step_is_that_of_plain_differentiation(setting: Setting):
    own, plain = setting.step(), setting.plain()
    largest = max(float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves(plain))

    def check(path: Any, expected: Any, found: Any) -> None:
        error = np.linalg.norm(found - expected)
        assert error < 1e-9 * (np.linalg.norm(expected) + 1e-3 * largest), jax.tree_util.keystr(path)

    jax.tree.map_with_path(check, plain, own)
