"""Gated GNN: carries messages along an architecture graph, forward then backward.

[1] Zhang et al., Graph HyperNetworks for Neural Architecture Search, ICLR 2019.
[2] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021.

Nodes are visited one by one, so the time goes into starting many small kernels rather than into arithmetic.
Three things keep it short:
- a node computes its messages once, when it is visited;
- messages reach the nodes of other blocks by one matrix product per block of nodes, and only the nodes of
  their own block one by one;
- the gradient is a traversal of the same kind in the opposite order, after which the gradient of each weight
  is one product over all nodes.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int

from ghn_jax.models.mlp import MLP, uniform_init

Nodes = Float[Array, "graph node c"]
Hops = Int[Array, "graph node node"]
States = Float[Array, "*batch c"]
Messages = Float[Array, "*batch kind_c"]  # c channels for each kind of edge
Gates = Float[Array, "*batch gate_c"]  # c channels for each of reset, update, new

MAX_HOPS = 50  # length of the longest virtual edge [2]
BLOCK = 16  # nodes: smaller blocks need more matrix products, larger ones more arithmetic per visit


class GatedGNN(nn.Module):
    """Visits nodes in topological order, then in reverse, sharing one GRU [1, Eq. 3].

    In the first sweep u ranges over the nodes with a path to v, in the second over those with a path from v:

      m_v = sum_{u: s_uv = 1} MLP(h_u) + sum_{u: s_uv <= 50} MLP_ve(h_u) / s_uv    [2, Eq. 4]
      h_v = GRU(m_v, h_v)

    where s_uv is the length of the shortest path and h_u the newest state of u. [2] applies MLP_ve to paths
    longer than 1; its released code, hence this, to all.

    Attributes:
      virtual_edges: whether paths longer than 1 carry messages. Without them, as in [1], MLP_ve is left out
        and the MLP is c -> c -> c instead of c -> c/2 -> c.
    """

    virtual_edges: bool = True

    @nn.compact
    def __call__(self, nodes: Nodes, hops: Hops) -> Nodes:
        """Updates the embeddings `nodes`, sorted topologically in each graph, with padding last.

        `hops[g, u, v]` is the length of the shortest path from u to v, or 0 if there is none or v is padding.
        Padding nodes come out finite but meaningless.
        """
        graphs, count, c = nodes.shape
        if hops.shape != (graphs, count, count):
            raise ValueError(
                f"`hops` (of shape {hops.shape}) must have shape {(graphs, count, count)}: "
                f"a path length for each pair of the {count} nodes in each of the {graphs} graphs of `nodes`"
            )
        reach = {"mlp": 1, "mlp_ve": MAX_HOPS} if self.virtual_edges else {"mlp": 1}
        hidden = c // 2 if self.virtual_edges else c
        mlps = [self.param(name, _init_mlp, c, (hidden, c)) for name in reach]
        weights = _side_by_side(mlps, self.param("gru", _init_gru, c))

        is_receiver = hops.max(axis=0).any(axis=0)
        num_nodes = jnp.max(jnp.arange(1, count + 1) * is_receiver)  # without the padding all graphs share
        hops = jnp.where(hops <= MAX_HOPS, hops, 0).astype(jnp.int8)  # read often, so kept small
        order = _Order(tuple(reach.values()), reverse=False)
        nodes = _sweep(order, weights, nodes, hops.swapaxes(1, 2), num_nodes)
        return _sweep(order.opposite(), weights, nodes, hops, num_nodes)


class _Weights(NamedTuple):
    """Weights of both MLPs, side by side as one, and of the GRU, which adds up what the two send."""

    hidden_kernel: Float[Array, "c kind_hidden"]
    hidden_bias: Float[Array, " kind_hidden"]
    send_kernel: Float[Array, "kind_hidden kind_c"]
    send_bias: Float[Array, " kind_c"]
    receive_kernel: Float[Array, "kind_c gate_c"]
    receive_bias: Float[Array, " gate_c"]
    recall_kernel: Float[Array, "c gate_c"]
    recall_bias: Float[Array, " gate_c"]

    def hidden(self, state: States) -> Float[Array, "*batch kind_hidden"]:
        return nn.relu(state @ self.hidden_kernel + self.hidden_bias)

    def send(self, state: States) -> Messages:
        return nn.relu(self.hidden(state) @ self.send_kernel + self.send_bias)

    def receive(self, received: Messages) -> Gates:
        return received @ self.receive_kernel + self.receive_bias

    def recall(self, state: States) -> Gates:
        return state @ self.recall_kernel + self.recall_bias

    def update(self, state: States, received: Messages) -> States:
        return _gru(self.receive(received), self.recall(state), state)


class _Order(NamedTuple):
    """Which way a traversal goes, and the longest path that each kind of message travels."""

    reach: tuple[int, ...]
    reverse: bool

    def opposite(self) -> "_Order":
        return self._replace(reverse=not self.reverse)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sweep(order: _Order, weights: _Weights, nodes: Nodes, hops: Hops, num_nodes: Int[Array, ""]) -> Nodes:
    """Visits each node once; here `hops[g, v, u]` is the length of the path over which v receives from u."""
    return _sweep_forward(order, weights, nodes, hops, num_nodes)[0]


def _sweep_forward(order, weights, nodes, hops, num_nodes):
    def visit(state, received):
        state = weights.update(state, received)
        return state, weights.send(state)

    states, received = _traverse(order, visit, nodes, hops, num_nodes)
    return states, (weights, nodes, hops, num_nodes, states, received)


def _sweep_backward(order, residuals, states_bar):
    """Traverses the graph in the opposite order: v sends to u the gradient of what it received from u."""
    weights, nodes, hops, num_nodes, states, received = residuals

    # ReLUs and gates act elementwise, so with their slopes known at all nodes a visit is three products.
    hidden, sent = weights.hidden(states), weights.send(states)
    _, gates_vjp = jax.vjp(lambda gates: _gru(gates, weights.recall(nodes), nodes), weights.receive(received))
    (gates_slope,) = gates_vjp(jnp.ones_like(nodes))
    slopes = (hidden > 0).astype(nodes.dtype), (sent > 0).astype(nodes.dtype), gates_slope
    # Transposed here: inside the traversal it would be done again at each visit.
    send_kernel, hidden_kernel, receive_kernel = (
        kernel.T for kernel in (weights.send_kernel, weights.hidden_kernel, weights.receive_kernel)
    )

    def visit(inputs, sent_bar):
        state_bar, (hidden_slope, sent_slope, gates_slope) = inputs
        state_bar += (sent_bar * sent_slope) @ send_kernel * hidden_slope @ hidden_kernel
        received_bar = jnp.concatenate([state_bar] * 3, axis=-1) * gates_slope @ receive_kernel
        return state_bar, received_bar

    states_bar, sent_bar = _traverse(
        order.opposite(), visit, (states_bar, slopes), hops.swapaxes(1, 2), num_nodes
    )

    def at_each_node(weights, nodes):
        return weights.update(nodes, received), weights.send(states)

    _, vjp = jax.vjp(at_each_node, weights, nodes)
    return *vjp((states_bar, sent_bar)), None, None


_sweep.defvjp(_sweep_forward, _sweep_backward)


def _traverse(
    order: _Order,
    visit: Callable[[Any, Messages], tuple[States, Messages]],
    inputs: Any,
    hops: Hops,
    num_nodes: Int[Array, ""],
) -> tuple[Nodes, Messages]:
    """Computes `state, sent = visit(inputs, received)` at each node; `received` sums what others sent before.

    Sent over a path within reach, messages are divided by its length: `hops[g, v, u]` for those from u to v.
    Returns the state of each node and what it received.
    """
    count, kinds = hops.shape[-1], len(order.reach)
    block = math.gcd(count, BLOCK)
    num_blocks = (num_nodes + block - 1) // block
    reach = jnp.array(order.reach, hops.dtype)[:, None, None]
    first = jax.tree.leaves(inputs)[0]

    def weigh(hops):
        """(graph, to, from) -> (graph, kind, to, from)."""
        hops = hops[:, None]
        return jnp.where((hops > 0) & (hops <= reach), 1 / jnp.maximum(hops, 1).astype(first.dtype), 0)

    def split(messages):
        """(graph, node, kind_c) -> (graph, kind, node, c)."""
        return messages.reshape(*messages.shape[:2], kinds, -1).swapaxes(1, 2)

    def merge(messages):
        """(graph, kind, node, c) -> (graph, node, kind_c)."""
        messages = messages.swapaxes(1, 2)
        return messages.reshape(*messages.shape[:2], -1)

    def visit_block(step, carry):
        states, sent, received = carry
        index = num_blocks - 1 - step if order.reverse else step
        start = index * block
        rows = lax.dynamic_slice_in_dim(hops, start, block, axis=1)
        from_block = weigh(lax.dynamic_slice_in_dim(rows, start, block, axis=2))
        from_others = weigh(jnp.where(jnp.arange(count) // block == index, 0, rows))

        def visit_node(step, carry):
            states, sent, received = carry
            offset = block - 1 - step if order.reverse else step
            node = start + offset
            here = jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, node, 1, axis=1), inputs)
            state, messages = visit(here, merge(lax.dynamic_slice_in_dim(received, offset, 1, axis=2)))
            states = lax.dynamic_update_slice_in_dim(states, state, node, axis=1)
            sent = lax.dynamic_update_slice_in_dim(sent, split(messages), node, axis=2)
            received += lax.dynamic_slice_in_dim(from_block, offset, 1, axis=3) * split(messages)
            return states, sent, received

        carry = states, sent, from_others @ sent
        states, sent, received_here = lax.fori_loop(0, block, visit_node, carry)
        return states, sent, lax.dynamic_update_slice_in_dim(received, received_here, start, axis=2)

    # A first visit to all nodes at once settles those that receive nothing, padding among them.
    nothing = jnp.zeros((*hops.shape[:2], kinds * first.shape[-1]), first.dtype)
    states, sent = visit(inputs, nothing)
    states, _, received = lax.fori_loop(0, num_blocks, visit_block, (states, split(sent), split(nothing)))
    return states, merge(received)


def _gru(received: Gates, recalled: Gates, state: States) -> States:
    """PyTorch's GRU cell, given both of its linear maps."""
    received_reset, received_update, received_new = jnp.split(received, 3, axis=-1)
    recalled_reset, recalled_update, recalled_new = jnp.split(recalled, 3, axis=-1)
    reset = nn.sigmoid(received_reset + recalled_reset)
    update = nn.sigmoid(received_update + recalled_update)
    new = nn.tanh(received_new + reset * recalled_new)
    return (1 - update) * new + update * state


def _side_by_side(mlps: list[Any], gru: dict[str, Array]) -> _Weights:
    hidden, send = ([mlp[layer] for mlp in mlps] for layer in ("fc.0", "fc.2"))
    return _Weights(
        hidden_kernel=jnp.concatenate([layer["kernel"] for layer in hidden], axis=1),
        hidden_bias=jnp.concatenate([layer["bias"] for layer in hidden]),
        send_kernel=jax.scipy.linalg.block_diag(*[layer["kernel"] for layer in send]),
        send_bias=jnp.concatenate([layer["bias"] for layer in send]),
        receive_kernel=jnp.tile(gru["weight_ih"].T, (len(mlps), 1)),
        receive_bias=gru["bias_ih"],
        recall_kernel=gru["weight_hh"].T,
        recall_bias=gru["bias_hh"],
    )


def _init_mlp(key: Array, in_features: int, features: tuple[int, ...]) -> Any:
    return MLP(features).init(key, jnp.zeros(in_features))["params"]


def _init_gru(key: Array, c: int) -> dict[str, Array]:
    """The weights of torch.nn.GRUCell, in its layout: (3c, c), gates in the order reset, update, new."""
    shapes = {"weight_ih": (3 * c, c), "weight_hh": (3 * c, c), "bias_ih": (3 * c,), "bias_hh": (3 * c,)}
    keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
    return {name: uniform_init(c)(keys[name], shape) for name, shape in shapes.items()}
