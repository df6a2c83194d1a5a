"""Checks that two ways to a graph agree: symbolic walk of an architecture, and jaxpr of its plain Flax module.

    python -m benchmarks.graph_agreement --num 1000

Architectures of all splits in turn. Prints how many graphs differ, and exits with 1 if one does.
"""

import itertools
import sys
import time

import jax
import jax.numpy as jnp
import tyro

from benchmarks.golden import refined_labels
from ghn_jax import graph_of
from ghn_jax.deepnets import networks, sampling
from ghn_jax.deepnets.lowering import UnreachableOutput, lower
from ghn_jax.graphs import Graph, path_lengths


def main(num: int = 1000) -> None:
    """Compares.

    Args:
      num: architectures.
    """
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    sizes = {name: split.size for name, split in sampling.SPLITS.items()}
    in_turn = ((split, index) for index in itertools.count() for split in sizes if index < sizes[split])
    done, different, start = 0, [], time.monotonic()
    for number, (split, index) in enumerate(itertools.islice(in_turn, num)):
        arch = sampling.sample(split, index)
        try:
            network = lower(arch)
        except UnreachableOutput:
            continue
        traced = graph_of(networks.CellNetwork(arch, 10, 32), images)
        done += 1
        if labels(traced) != labels(network.graph):
            different.append(f"{split} {index}")
        if done % 50 == 0:
            rate = done / (time.monotonic() - start)
            print(
                f"{done}/{num}  {len(different)} differ  {rate:.1f}/s  ETA {(num - number) / rate:.0f} s",
                flush=True,
            )
    print(f"{done} architectures, {len(different)} graphs differ {different[:10]}")
    if different:
        sys.exit(1)


def labels(graph: Graph) -> list[int]:
    """The graph up to the order of nodes, parameters told apart by the layer they belong to."""
    layers = [name and name.rpartition(".")[0] for name in graph.names]
    nodes = list(zip(graph.primitives.tolist(), layers, graph.shapes, strict=True))
    return refined_labels(nodes, path_lengths(graph))


if __name__ == "__main__":
    tyro.cli(main)
