"""Training architectures made a second on one core, and what their graphs are like.

Each is sampled, gets its width, is lowered to graph, parameters and program, and gets its virtual edges.
Published for a sample of the training graphs: 192 ± 95 nodes, mean degree 2.3, mean path 14.5.

Command line: `python -m benchmarks.sampling_rate [--num=500]`.
"""

import os
import time

import numpy as np
import tyro
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path

from ghn_jax.deepnets.sampling import meta_batch
from ghn_jax.graphs import Graph, path_lengths


def measure(num: int = 500, seed: int = 0) -> None:
    """Prints the rate over `num` architectures, and the statistics of their graphs."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    graphs = []
    wall, cpu = time.perf_counter(), time.process_time()
    for step in range(num):
        graphs.append(meta_batch(seed, step, size=1).networks[0].graph)
        path_lengths(graphs[-1])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"rate            {num / wall:.0f} architectures a second, {num / cpu:.0f} a second of CPU time")

    nodes = np.array([graph.num_nodes for graph in graphs])
    degrees = [2 * len(graph.senders) / graph.num_nodes for graph in graphs]
    print(f"nodes           {nodes.mean():.0f} ± {nodes.std():.0f}, from {nodes.min()} to {nodes.max()}")
    print(f"mean degree     {np.mean(degrees):.2f}")
    print(f"mean path       {np.mean([mean_path(graph) for graph in graphs]):.1f}")


def mean_path(graph: Graph) -> float:
    """Mean length of the shortest paths between two nodes, whatever the direction of the edges."""
    size = graph.num_nodes
    edges = coo_array((np.ones(len(graph.senders)), (graph.senders, graph.receivers)), shape=(size, size))
    lengths = shortest_path(edges, directed=False, unweighted=True)
    return float(lengths.sum() / (size * (size - 1)))


if __name__ == "__main__":
    tyro.cli(measure)
