"""Computational graphs: what they hold, how they are batched, how they are drawn."""

from ghn_jax.graphs.draw import draw
from ghn_jax.graphs.graph import (
    MAX_HOPS,
    PRIMITIVES,
    Graph,
    GraphBatch,
    PadSize,
    Shape,
    batch,
    next_size,
    pad_size,
    path_lengths,
    to_graphs_tuple,
)

__all__ = [
    "MAX_HOPS",
    "PRIMITIVES",
    "Graph",
    "GraphBatch",
    "PadSize",
    "Shape",
    "batch",
    "draw",
    "next_size",
    "pad_size",
    "path_lengths",
    "to_graphs_tuple",
]
