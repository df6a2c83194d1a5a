"""The gated GNN against plain node-by-node implementations, and its MLPs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jaxtyping import TypeCheckError

from ghn_jax.models.gated_gnn import MAX_HOPS, GatedGNN
from ghn_jax.models.mlp import MLP, Dense

C = 8
COUNTS = (110, 33, 1, 48)  # nodes of each graph; a single node has no edges
LENGTH = 128  # nodes after padding: whole blocks, the last of which is padding only
ODD_LENGTH = 115  # no whole number of blocks


@pytest.fixture(params=[True, False], ids=["virtual", "direct"])
def gnn(request):
    return GatedGNN(virtual_edges=request.param)


def random_hops(rng, counts, length):
    """Shortest path lengths in random graphs whose nodes are sorted topologically."""
    hops = np.zeros((len(counts), length, length), np.int32)
    for graph, count in zip(hops, counts, strict=True):
        is_edge = np.eye(count, k=1) * rng.random((count, count)) > 0.01  # a chain, rarely broken
        is_edge |= np.triu(np.tri(count, k=5), k=2) * rng.random((count, count)) > 0.9  # and its shortcuts
        distance = np.where(is_edge, 1, np.inf)
        for middle in range(count):
            distance = np.minimum(distance, distance[:, middle, None] + distance[middle])
        graph[:count, :count] = np.where(np.isfinite(distance), distance, 0)
    return hops


def problem(gnn, length):
    """Weights, nodes, hops and a mask of the real nodes; all but `length` is the same for any length."""
    rng = np.random.default_rng(0)
    hops = random_hops(rng, COUNTS, length)
    nodes = np.zeros((len(COUNTS), length, C), np.float32)
    nodes[:, : max(COUNTS)] = rng.standard_normal((len(COUNTS), max(COUNTS), C))
    shapes = jax.eval_shape(gnn.init, jax.random.key(0), nodes, hops)
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), leaf.dtype), shapes)
    is_real = np.arange(length) < np.array(COUNTS)[:, None]
    return variables, jnp.asarray(nodes), jnp.asarray(hops), is_real


def init(module, *arguments):
    return jax.jit(module.init)(jax.random.key(0), *arguments)


def numpy_gated_gnn(params, nodes, hops):
    """The two sweeps over one graph without padding, in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    states = np.asarray(nodes, np.float64)
    hops = np.asarray(hops)

    def message(mlp, state):
        for layer in ("fc.0", "fc.2"):
            state = np.maximum(state @ mlp[layer]["kernel"] + mlp[layer]["bias"], 0)
        return state

    def sigmoid(logits):
        return 1 / (1 + np.exp(-logits))

    def update(received, state):
        gru = params["gru"]
        received = np.split(gru["weight_ih"] @ received + gru["bias_ih"], 3)
        recalled = np.split(gru["weight_hh"] @ state + gru["bias_hh"], 3)
        reset, gate = (sigmoid(received[i] + recalled[i]) for i in range(2))
        return (1 - gate) * np.tanh(received[2] + reset * recalled[2]) + gate * state

    for order, lengths in ((range(len(states)), hops.T), (reversed(range(len(states))), hops)):
        for node in order:
            received = np.zeros(C)
            for sender, length in enumerate(lengths[node]):
                if length == 1:
                    received += message(params["mlp"], states[sender])
                if 1 <= length <= MAX_HOPS and "mlp_ve" in params:
                    received += message(params["mlp_ve"], states[sender]) / length
            states[node] = update(received, states[node])
    return states


def naive_gated_gnn(variables, nodes, hops):
    """The two sweeps as scans that compute all messages anew at each node, for JAX to differentiate."""
    params = variables["params"]
    virtual = "mlp_ve" in params
    mlp = MLP((C // 2 if virtual else C, C))
    near = (hops == 1).astype(jnp.float32)
    paths = jnp.where((hops > 0) & (hops <= MAX_HOPS), 1 / jnp.maximum(hops, 1), 0)

    def visit(states, node_and_weights):
        node, near, paths = node_and_weights
        received = jnp.einsum("gu,guc->gc", near, mlp.apply({"params": params["mlp"]}, states))
        if virtual:
            received += jnp.einsum("gu,guc->gc", paths, mlp.apply({"params": params["mlp_ve"]}, states))
        gru, state = params["gru"], states[:, node]
        received = jnp.split(received @ gru["weight_ih"].T + gru["bias_ih"], 3, axis=-1)
        recalled = jnp.split(state @ gru["weight_hh"].T + gru["bias_hh"], 3, axis=-1)
        reset, gate = (jax.nn.sigmoid(received[i] + recalled[i]) for i in range(2))
        state = (1 - gate) * jnp.tanh(received[2] + reset * recalled[2]) + gate * state
        return states.at[:, node].set(state), None

    order = jnp.arange(nodes.shape[1])
    forward = (order, near.transpose(2, 0, 1), paths.transpose(2, 0, 1))
    backward = (order, near.swapaxes(0, 1), paths.swapaxes(0, 1))
    nodes, _ = jax.lax.scan(visit, nodes, forward)
    return jax.lax.scan(visit, nodes, backward, reverse=True)[0]


def assert_close(actual, expected, tolerance=1e-5):
    actual, expected = np.asarray(actual), np.asarray(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_equals_numpy(gnn):
    variables, nodes, hops, _ = problem(gnn, LENGTH)
    states = jax.jit(gnn.apply)(variables, nodes, hops)
    assert hops.max() > MAX_HOPS
    assert np.isfinite(states).all()
    for graph, count in enumerate(COUNTS):
        expected = numpy_gated_gnn(variables["params"], nodes[graph, :count], hops[graph, :count, :count])
        assert_close(states[graph, :count], expected)


@pytest.mark.parametrize(("virtual_edges", "length"), [(True, LENGTH), (False, ODD_LENGTH)])
def test_gradients_equal_naive(virtual_edges, length):
    gnn = GatedGNN(virtual_edges)
    variables, nodes, hops, is_real = problem(gnn, length)
    direction = np.random.default_rng(1).standard_normal(nodes.shape).astype(np.float32) * is_real[..., None]

    def gradients(apply):
        projection = jax.grad(lambda *arguments: (apply(*arguments) * direction).sum(), argnums=(0, 1))
        return jax.jit(projection)(variables, nodes, hops)

    actual, expected = gradients(gnn.apply), gradients(naive_gated_gnn)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(expected))
    jax.tree.map(assert_close, actual, expected)


def test_padding_changes_nothing(gnn):
    variables, nodes, hops, is_real = problem(gnn, LENGTH)
    _, other_nodes, other_hops, other_is_real = problem(gnn, ODD_LENGTH)
    other_nodes = jnp.where(other_is_real[..., None], other_nodes, 7.0)
    apply = jax.jit(gnn.apply)
    states, other_states = apply(variables, nodes, hops), apply(variables, other_nodes, other_hops)
    assert_close(other_states[other_is_real], states[is_real])


def test_weights_are_named_shaped_and_drawn_as_in_pytorch():
    nodes, hops = jnp.zeros((1, 2, 32)), jnp.zeros((1, 2, 2), jnp.int32)
    weights = jax.tree.map(np.asarray, flatten_dict(init(GatedGNN(), nodes, hops)["params"], sep="."))
    mlp = {"fc.0.kernel": (32, 16), "fc.0.bias": (16,), "fc.2.kernel": (16, 32), "fc.2.bias": (32,)}
    gru = {"weight_ih": (96, 32), "weight_hh": (96, 32), "bias_ih": (96,), "bias_hh": (96,)}
    shapes = {f"{name}.{key}": shape for name in ("mlp", "mlp_ve") for key, shape in mlp.items()}
    assert {name: leaf.shape for name, leaf in weights.items()} == shapes | {f"gru.{k}": gru[k] for k in gru}
    for name, leaf in weights.items():
        fan_in = 16 if "fc.2" in name else 32
        assert 0.8 < np.abs(leaf).max() * np.sqrt(fan_in) <= 1, name


def test_direct_edges_need_one_wide_mlp():
    nodes, hops = jnp.zeros((1, 2, 32)), jnp.zeros((1, 2, 2), jnp.int32)
    params = init(GatedGNN(virtual_edges=False), nodes, hops)["params"]
    assert set(params) == {"mlp", "gru"}
    assert params["mlp"]["fc.0"]["kernel"].shape == (32, 32)


def test_hops_of_another_shape_are_refused():
    with pytest.raises((ValueError, TypeCheckError), match="hops"):  # the latter where jaxtyping checks first
        init(GatedGNN(), jnp.zeros((1, 2, C)), jnp.zeros((1, 2, 3), jnp.int32))


def test_mlp_activates_last_layer_unless_told():
    inputs = jax.random.normal(jax.random.key(1), (5, 3))
    variables = init(MLP((4, 6)), inputs)
    hidden, output = variables["params"]["fc.0"], variables["params"]["fc.2"]
    expected = np.maximum(inputs @ hidden["kernel"] + hidden["bias"], 0) @ output["kernel"] + output["bias"]
    assert_close(MLP((4, 6), activate_last=False).apply(variables, inputs), expected)
    assert_close(MLP((4, 6)).apply(variables, inputs), np.maximum(expected, 0))


def test_mlp_without_layers_is_refused():
    with pytest.raises(ValueError, match="`features`"):
        init(MLP(()), jnp.zeros(3))


def test_dense_is_affine():
    inputs = jax.random.normal(jax.random.key(1), (2, 5, 3))
    variables = init(Dense(4), inputs)
    weights = variables["params"]
    assert_close(Dense(4).apply(variables, inputs), inputs @ weights["kernel"] + weights["bias"])
