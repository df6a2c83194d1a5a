"""A step of GHN-3 and of LoGAH against plain differentiation of the whole loss, from weights to penalty, in float64.

The plain computation shares the embedding of nodes with the step, and nothing after it: tensors are decoded one by one
as the paper writes it, the networks are plain Flax modules, and JAX differentiates all of it at once.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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
from ghn_jax.graphs import batch
from ghn_jax.models.config import GHNConfig, ghn3, logah
from ghn_jax.models.ghn import GHN, encode, init_params
from ghn_jax.models.templates import Template, deepnets_templates
from ghn_jax.training import meta, prepare
from ghn_jax.training.pmapped import replicate
from ghn_jax.training.recipes import RECIPES

CONFIGS = {
    "ghn3-t": ghn3(hidden=16, layers=1, heads=8),
    "logah-t": dataclasses.replace(logah(hidden=16, layers=1, heads=8, rank=4), channels=16),
}
"""The presets, but narrower and with one layer: 16 channels are decoded and tiled."""

RECIPE = dataclasses.replace(RECIPES["ghn3"], norm_penalty=0.01, clip=1e9)
"""The penalty counts, and the optimiser's first momentum is a tenth of the gradient."""

IMAGES = (4, 32, 32, 3)
CELL = (("conv_1x1", 0), ("sep_conv_3x3", 1))
ARCH = Architecture(
    Genotype(CELL, (2,), CELL, (2,)), 1, C_mult=1, stem_pool=True, preproc=False, fc_layers=2, fc_dim=64
)


Linear = Callable[[str, jax.Array], jax.Array]


def full_rank_kernel(
    config: GHNConfig, linear: Linear, weights: Any, h: jax.Array, parameter: Parameter
) -> jax.Array:
    """The centre of all decoded positions, its channels tiled."""
    shape, centre = parameter.shape, config.max_kernel // 2
    x = jnp.einsum("c,yxcd->yxd", h, weights["decoder.fc.0.weight"]) + weights["decoder.fc.0.bias"]
    last, last_bias = weights["decoder.conv.2.weight"], weights["decoder.conv.2.bias"]
    x = jnp.tensordot(jax.nn.relu(linear("decoder.conv.0", jax.nn.relu(x))), last, 1) + last_bias
    if parameter.shape[0] == config.num_classes:
        x = linear("decoder.class_layer_predictor.1", jax.nn.relu(x[centre, centre]))  # in, out
        return x[np.arange(shape[1]) % config.channels].T
    for axis, size in enumerate(shape[2:] or (1, 1)):
        start = centre - size // 2
        x = jax.lax.slice_in_dim(x, start, start + size, axis=axis)
    out, inside = (np.arange(size) % config.channels for size in shape[:2])
    return x.transpose(3, 2, 0, 1)[out][:, inside].reshape(shape)


def low_rank_kernel(
    config: GHNConfig, linear: Linear, weights: Any, h: jax.Array, parameter: Parameter
) -> jax.Array:
    """A product, element by element, its channels tiled."""
    shape, columns = parameter.shape, weights["decoder.factors.weight"]
    code = linear("decoder.code.2", jax.nn.relu(linear("decoder.code.0", h)))
    code = linear("decoder.code.4", jax.nn.relu(code)).reshape(2, config.rank, config.rank)
    height, width = (*shape, 1, 1)[2:4]
    out, inside = (np.arange(size) % config.channels for size in shape[:2])
    a = (code[0] @ columns)[:, out[:, None] * height + np.arange(height)]
    b = (code[1] @ columns)[:, inside[:, None] * width + np.arange(width)]
    return jnp.einsum("roy,rix->oiyx", a, b).reshape(shape)


def predicted(config: GHNConfig, weights: Any, h: jax.Array, parameter: Parameter) -> jax.Array:
    """One tensor in PyTorch's layout, from the embedding of its node."""

    def linear(name: str, x: jax.Array) -> jax.Array:
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    shape = parameter.shape
    is_weight = not parameter.name.endswith("bias")
    if len(shape) > 1:
        kernel = low_rank_kernel if config.decoder == "low_rank" else full_rank_kernel
        beta = 1 if len(shape) == 4 and shape[1] == 1 else 2
        scale = float(np.float32(math.sqrt(beta / math.prod(shape[1:]))))  # as plans keep it
        return scale * kernel(config, linear, weights, h, parameter)
    both = linear("decoder_1d.fc.2", jax.nn.relu(linear("decoder_1d.fc.0", h))).reshape(2, -1)
    vector, size, reach = both[1 - is_weight], math.prod(shape), config.channels
    if config.decoder == "low_rank":
        vector = vector @ weights["decoder.factors.weight"]
    elif size == config.num_classes:
        vector = linear("bias_class.1", jax.nn.relu(vector))
    tiled = vector[np.arange(size) % (size if size == config.num_classes else reach)]
    return 2 * jax.nn.sigmoid(0.5 * tiled) if is_weight else jnp.tanh(0.2 * tiled)


def plain_loss(config: GHNConfig, params: Any, network: Lowered, images: Any, labels: Any) -> jax.Array:
    """Cross entropy of the predicted network, and the penalty."""
    graphs = batch([encode(network.graph, config)])
    nodes: Any = GHN(config).apply({"params": params}, graphs.graphs, graphs.max_nodes, method="embed")
    tensors = {p.name: predicted(config, params["decoder"], nodes[0, p.node], p) for p in network.parameters}
    logits: Any = CellNetwork(ARCH).apply({"params": to_params(tensors)}, images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss + RECIPE.norm_penalty * sum(jnp.linalg.norm(tensor) for tensor in tensors.values())


def used_templates(config: GHNConfig, image_size: int) -> tuple[Template, ...]:
    """Those that ARCH needs: fewer to compile."""
    forms = deepnets_templates(config, image_size)
    return tuple(f for f in forms if f.height == f.width == 1 or (f.height == 3 and f.inputs <= 4))


def own_gradient(state: meta.TrainState) -> Any:
    """The gradient of the first step, of which AdamW's momentum is a tenth."""
    moments = next(s for s in jax.tree.leaves(state.opt_state, is_leaf=has_mu) if has_mu(s))
    return jax.tree.map(lambda m: np.asarray(m)[0] * 10, moments.mu)


def has_mu(node: object) -> bool:
    return hasattr(node, "mu")


class Case(NamedTuple):
    """Weights, a network and images, and the gradient that a step hands to the optimiser."""

    params: Any
    network: Lowered
    images: jax.Array
    labels: jax.Array
    gradient: Any


def take_step(config: GHNConfig) -> Case:
    """A step of meta-training, in float64 if that is the default."""
    devices, templates = jax.local_devices()[:1], used_templates(config, 32)
    optimizer = RECIPE.make_optimizer(10)
    params = jax.tree.map(lambda w: jnp.asarray(w, float), init_params(config, jax.random.key(0)))
    zero = jnp.zeros((), jnp.int32)
    state = replicate(meta.TrainState(params, optimizer.init(params), zero, zero), devices)
    rng = np.random.default_rng(0)
    images, labels = jnp.asarray(rng.standard_normal(IMAGES)), jnp.asarray(rng.integers(0, 10, IMAGES[0]))
    network = lower(ARCH)
    step = meta.make_ghn_step(config, templates, optimizer, devices, RECIPE)
    prepared = prepare.prepare((network,), config, templates, num_devices=1)
    state, _ = meta.meta_step(step, state, prepared, [images[None]], [labels[None]], None)
    return Case(params, network, images, labels, own_gradient(state))


@pytest.fixture
def float64() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)  # in all threads
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.usefixtures("float64")
def test_gradient_of_a_step_is_that_of_plain_differentiation(name: str):
    config = CONFIGS[name]
    case = take_step(config)

    def loss(params: Any) -> jax.Array:
        return plain_loss(config, params, case.network, case.images, case.labels)

    plain: Any = jax.jit(jax.grad(loss))(case.params)
    largest = max(float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves(plain))

    def check(path: Any, expected: Any, found: Any) -> None:
        error = np.linalg.norm(found - expected)
        assert error < 1e-9 * (np.linalg.norm(expected) + 1e-3 * largest), jax.tree_util.keystr(path)

    jax.tree.map_with_path(check, plain, case.gradient)
