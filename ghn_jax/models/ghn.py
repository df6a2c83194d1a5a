"""The Graph HyperNetwork: reads the graph of a network, predicts all its parameters.

[1] Zhang, Ren, Urtasun, Graph HyperNetworks for Neural Architecture Search, ICLR 2019.
[2] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021.
[3] Knyazev et al., Can We Scale Transformers to Predict Parameters of Diverse ImageNet Models?, ICML 2023.
"""

from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jaxtyping import Array, Float, Int

from ghn_jax.graphs import PRIMITIVES, Graph, batch, path_lengths, to_graphs_tuple
from ghn_jax.models.config import GHNConfig
from ghn_jax.models.decoder import ParameterDecoder
from ghn_jax.models.gated_gnn import GatedGNN
from ghn_jax.models.graphormer import Graphormer
from ghn_jax.models.mlp import NodeMLP
from ghn_jax.models.shape_encoder import Embedding, ShapeEncoder, shape_indices, shape_tables
from ghn_jax.models.templates import Plan, Template, empty_plan

Nodes = Float[Array, "graph node c"]
Rows = Float[Array, "row 8"]


Propagation = Callable[[Nodes, Int[Array, "graph node node"]], Nodes]
"""From node embeddings and the path lengths between nodes to new embeddings."""

_PROPAGATION: dict[str, Callable[[GHNConfig], Propagation]] = {
    "gatedgnn": lambda config: GatedGNN(config.virtual_edges),
    "graphormer": lambda config: Graphormer(config.layers, config.heads),
    "mlp": lambda config: NodeMLP((config.hidden, config.hidden)),
}
"""By `GHNConfig.hypernet`."""


class GHN(nn.Module):
    """H(a; theta): embeds the nodes of a graph [2, Eq. 2], propagates [2, Eq. 4; 3], decodes [2, Section 3.1].

    `embed` and `decode` are separate, since a meta-batch is embedded at once and decoded network by network.
    """

    config: GHNConfig

    def setup(self) -> None:
        """Declares the parts."""
        config = self.config
        tables = shape_tables(config.num_classes, config.max_kernel)
        self.primitive_embedding = Embedding(len(PRIMITIVES), config.hidden, config.start)
        self.shape_encoder = ShapeEncoder(tables, config.hidden, config.start)
        self.gnn: Propagation = _PROPAGATION[config.hypernet](config)
        self.ln = nn.LayerNorm(epsilon=1e-5) if config.layer_norm else None
        self.decoder = ParameterDecoder(config)

    def embed(self, graphs: jraph.GraphsTuple, max_nodes: int) -> Nodes:
        """Node embeddings after propagation, for each graph but jraph's padding graph at the end.

        Args:
          graphs: a padded batch, from `ghn_jax.graphs.batch`.
          max_nodes: nodes per graph in the result; what a graph lacks is padding.
        """
        num_graphs = graphs.n_node.shape[0] - 1
        place = _dense_places(graphs, max_nodes)
        features = cast(dict[str, Array], graphs.nodes)
        nodes = self.primitive_embedding(features["primitive"]) + self.shape_encoder(features["shape"])
        dense = jnp.zeros((num_graphs * max_nodes, nodes.shape[-1]), nodes.dtype)
        dense = dense.at[place].set(nodes, mode="drop").reshape(num_graphs, max_nodes, -1)
        sender, receiver = place[graphs.senders], place[graphs.receivers] % max_nodes
        hops = jnp.zeros((num_graphs * max_nodes, max_nodes), jnp.int32)
        hops = hops.at[sender, receiver].set(graphs.edges, mode="drop")
        dense = self.gnn(dense, hops.reshape(num_graphs, max_nodes, max_nodes))
        return self.ln(dense) if self.ln is not None else dense

    def decode(self, nodes: Float[Array, "node c"], plan: Plan, templates: tuple[Template, ...]) -> Rows:
        """The flat parameter vector (in rows of 8) of one network, given its node embeddings."""
        return self.decoder(nodes, plan, templates)

    def __call__(
        self, graphs: jraph.GraphsTuple, max_nodes: int, plan: Plan, templates: tuple[Template, ...]
    ) -> Rows:
        """The flat parameter vector of the first network of a batch."""
        return self.decode(self.embed(graphs, max_nodes)[0], plan, templates)


def _dense_places(graphs: jraph.GraphsTuple, max_nodes: int) -> Array:
    """Place of each node when every graph takes `max_nodes`; out of range for padding nodes."""
    total = cast(dict[str, Array], graphs.nodes)["primitive"].shape[0]
    graph = jnp.repeat(jnp.arange(len(graphs.n_node)), graphs.n_node, total_repeat_length=total)
    first = jnp.cumsum(graphs.n_node) - graphs.n_node
    place = graph * max_nodes + jnp.arange(total) - first[graph]
    is_padding = graph == len(graphs.n_node) - 1
    return jnp.where(is_padding, len(graphs.n_node) * max_nodes, place)


def encode(graph: Graph, config: GHNConfig) -> jraph.GraphsTuple:
    """A graph as the GraphsTuple that a GHN of this configuration reads."""
    tables = shape_tables(config.num_classes, config.max_kernel)
    hops = path_lengths(graph)
    if not config.virtual_edges:
        hops = np.where(hops == 1, hops, 0)
    return to_graphs_tuple(graph, hops, shape_indices(tables, graph.shapes))


def init_params(config: GHNConfig, key: Array) -> dict[str, Any]:
    """Weights of a fresh GHN."""
    nothing = np.zeros(0, np.int32)
    primitives = np.array([PRIMITIVES.index("input")])
    single = Graph(primitives, (None,), (None,), nothing, nothing)  # any will do: no weight depends on it
    graphs = batch([encode(single, config)])

    def init(key: Array) -> dict[str, Any]:
        variables = GHN(config).init(key, graphs.graphs, graphs.max_nodes, empty_plan(), ())
        return cast(dict[str, Any], variables["params"])

    return jax.jit(init)(key)  # jitted, what initialisation does not need is never run
