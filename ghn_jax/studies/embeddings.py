"""The embedding of a graph: the mean of its nodes' embeddings by a GHN."""

import functools
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

from ghn_jax.graphs import Graph, batch
from ghn_jax.models.ghn import GHN, encode
from ghn_jax.pretrained import TrainedGHN


def graph_embeddings(ghn: TrainedGHN, graphs: Sequence[Graph]) -> Float[np.ndarray, "graph c"]:
    """One row for each graph."""
    rows = []
    for graph in graphs:
        padded = batch([encode(graph, ghn.config)])
        nodes = _embed(ghn.config, padded.max_nodes, ghn.params, padded.graphs)
        rows.append(np.asarray(nodes)[: graph.num_nodes].mean(0))
    return np.stack(rows)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _embed(config, max_nodes, params, graphs):
    return GHN(config).apply({"params": params}, graphs, max_nodes, method=GHN.embed)[0]
