"""Computational graphs of networks, and their batching as jraph GraphsTuples.

A node is an operation, an edge follows the forward pass. Virtual edges join every two nodes with a directed
path of length 2 to 50 between them.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021, Section 4.1 and Eq. 4.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jraph
import numpy as np
from jaxtyping import Int, UInt8

PRIMITIVES = (
    "max_pool",
    "avg_pool",
    "sep_conv",
    "dil_conv",
    "conv",
    "msa",
    "cse",
    "sum",
    "concat",
    "input",
    "bias",
    "bn",
    "ln",
    "pos_enc",
    "glob_avg",
)
"""Node types, in the order of the primitive embedding [1, Table 1]."""

MAX_HOPS = 50
"""Longest path that a virtual edge stands for [1, Section 4.1]."""

Shape = tuple[int, ...]


class Graph(NamedTuple):
    """The graph of one network, nodes in topological order, the first one the input.

    Attributes:
      primitives: index into PRIMITIVES of each node.
      names: name of the parameter that a node owns (the weight, for a norm layer), else None.
      shapes: shape of that parameter in PyTorch's layout (OIHW, or (out, in), or (out,)), (1, 1, k, k) for a
        pooling with a k x k window, else None.
      senders: node at which each one-hop edge starts.
      receivers: node at which it ends.
    """

    primitives: Int[np.ndarray, " node"]
    names: tuple[str | None, ...]
    shapes: tuple[Shape | None, ...]
    senders: Int[np.ndarray, " edge"]
    receivers: Int[np.ndarray, " edge"]

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return len(self.primitives)


def path_lengths(graph: Graph, max_hops: int = MAX_HOPS) -> UInt8[np.ndarray, "node node"]:
    """Shortest path length from u to v at [u, v], 0 where there is none of at most `max_hops`.

    Dynamic programming in topological order: the paths to v are those to its predecessors, one edge longer.
    """
    size = graph.num_nodes
    unreachable = 1 << 14  # leaves room to add one, at every node, in 16 bits
    to = np.full((size, size), unreachable, np.uint16)  # to[v, u]: from u to v
    predecessors: list[list[int]] = [[] for _ in range(size)]
    for sender, receiver in zip(graph.senders.tolist(), graph.receivers.tolist(), strict=True):
        predecessors[receiver].append(sender)
    for node, sources in enumerate(predecessors):
        row = to[node]
        for source in sources:
            np.minimum(row, to[source], out=row)
        row += 1
        row[node] = 0
    to[to > max_hops] = 0
    return to.T.astype(np.uint8)


class GraphBatch(NamedTuple):
    """Graphs as a padded jraph.GraphsTuple, and how to lay it out densely.

    Attributes:
      graphs: `nodes` is a dict of `primitive` [node] and `shape` [node, 4] (indices into the embedding
        tables of `ghn_jax.models.shape_encoder`), `edges` the path length [edge] of real (1) and virtual
        (2..50) edges; the last graph is jraph's padding graph.
      max_nodes: nodes to which each graph is padded in the dense layout; static.
    """

    graphs: jraph.GraphsTuple
    max_nodes: int


class PadSize(NamedTuple):
    """Sizes to which a batch of graphs is padded, jraph's padding graph included."""

    nodes: int
    edges: int
    graphs: int
    max_nodes: int


def to_graphs_tuple(graph: Graph, hops: UInt8[np.ndarray, "node node"], shape_indices) -> jraph.GraphsTuple:
    """One graph, with virtual edges where `hops` > 1, as a GraphsTuple; see GraphBatch for its features."""
    senders, receivers = np.nonzero(hops)
    arrays: dict[str, Any] = {  # jraph's annotations know jax arrays only
        "nodes": {"primitive": graph.primitives, "shape": shape_indices},
        "edges": hops[senders, receivers].astype(np.int32),
        "senders": senders.astype(np.int32),
        "receivers": receivers.astype(np.int32),
        "n_node": np.array([graph.num_nodes], np.int32),
        "n_edge": np.array([len(senders)], np.int32),
    }
    return jraph.GraphsTuple(**arrays, globals=None)


def pad_size(num_nodes: Sequence[int], num_edges: Sequence[int]) -> PadSize:
    """The smallest of a few sizes that holds graphs with these numbers of nodes and edges.

    Sizes grow by a factor of about two, so that a training run meets a handful of them.
    """
    longest, edges = max(num_nodes), sum(num_edges)
    max_nodes = next_size(longest, start=256)
    edge_capacity = next_size(edges + 1, start=1 << 17)
    # one more node and graph: jraph keeps the padding edges in a graph of their own
    return PadSize(len(num_nodes) * max_nodes + 1, edge_capacity, len(num_nodes) + 1, max_nodes)


def next_size(value: int, start: int) -> int:
    """The first of start, 2 start, 4 start, ... that is at least `value`."""
    size = start
    while size < value:
        size *= 2
    return size


def batch(tuples: Sequence[jraph.GraphsTuple], size: PadSize | None = None) -> GraphBatch:
    """Batches graphs made by `to_graphs_tuple` and pads them to `size` (by default that of `pad_size`).

    Raises ValueError, with the shortfall, if they do not fit.
    """
    num_nodes = [int(t.n_node[0]) for t in tuples]
    num_edges = [int(t.n_edge[0]) for t in tuples]
    size = size or pad_size(num_nodes, num_edges)
    fits = {
        "nodes": (sum(num_nodes) + 1, size.nodes),
        "edges": (sum(num_edges), size.edges),
        "graphs": (len(tuples) + 1, size.graphs),
        "max_nodes": (max(num_nodes), size.max_nodes),
    }
    for what, (needed, available) in fits.items():
        if needed > available:
            raise ValueError(
                f"`size.{what}` (={available}) is {needed - available} too small for this batch of "
                f"{len(tuples)} graphs: pad to at least {needed}, or batch fewer graphs"
            )
    batched = jraph.batch_np(tuples)
    padded = jraph.pad_with_graphs(batched, n_node=size.nodes, n_edge=size.edges, n_graph=size.graphs)
    return GraphBatch(padded, size.max_nodes)
