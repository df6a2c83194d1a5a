"""Times the gated GNN on one meta-batch: eight architectures, GHN-2's width of 32.

    python benchmarks/gated_gnn.py --golden DIR

DIR holds `deepnets_cifar10.json.gz`; the first eight networks of its train and val splits make the batch.
"""

import argparse
import gzip
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.models.gated_gnn import GatedGNN

META_BATCH, WIDTH, MULTIPLE = 8, 32, 64


def main(golden: Path, runs: int):
    counts, hops = load_hops(golden / "deepnets_cifar10.json.gz")
    nodes = jax.random.normal(jax.random.key(0), (*hops.shape[:2], WIDTH))
    is_real = jnp.arange(hops.shape[1]) < jnp.array(counts)[:, None]
    gnn = GatedGNN()
    variables = jax.jit(gnn.init)(jax.random.key(1), nodes, hops)

    def loss(variables, nodes, hops):
        states = jnp.asarray(gnn.apply(variables, nodes, hops))
        return jnp.mean(states**2, where=is_real[..., None])

    print(f"nodes: {counts}, {sum(counts)} in all, padded to {hops.shape[1]} each")
    arguments = variables, nodes, hops
    report("forward", gnn.apply, arguments, runs)
    report("forward + backward", jax.value_and_grad(loss, argnums=(0, 1)), arguments, runs)


def load_hops(path: Path) -> tuple[list[int], jax.Array]:
    """Numbers of nodes and path lengths (graph, from, to) of the meta-batch."""
    with gzip.open(path) as file:
        records = [record for record in json.load(file) if record["split"] in ("train", "val")]
    graphs = [record["graph"] for record in records[:META_BATCH]]
    counts = [len(graph["nodes"]) for graph in graphs]
    length = -(-max(counts) // MULTIPLE) * MULTIPLE
    hops = np.zeros((len(graphs), length, length), np.int32)
    for matrix, graph in zip(hops, graphs, strict=True):
        for source, target in graph["edges"]:
            matrix[source, target] = 1
        for source, target, distance in graph["virtual"]:
            matrix[source, target] = distance
    return counts, jnp.asarray(hops)


def report(name: str, function, arguments, runs: int):
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - start
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
    print(
        f"{name}: compiled in {compile_seconds:.2f} s; {runs} runs, "
        f"median {statistics.median(seconds):.4f} s, minimum {min(seconds):.4f} s"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--golden", type=Path, required=True, help="folder of the golden figures")
    parser.add_argument("--runs", type=int, default=30, help="timed runs of each function")
    options = parser.parse_args()
    main(options.golden, options.runs)
