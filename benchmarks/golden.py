"""Golden figures, those of the public code on deterministic weights, and how far others are from them."""

import gzip
import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ghn_jax.graphs import PRIMITIVES, Graph, path_lengths
from ghn_jax.models.config import GHNConfig
from ghn_jax.pretrained import public_names

Errors = dict[str, list[float]]
"""Of each quantity the relative errors of all cases."""


def load(path: pathlib.Path) -> Any:
    """Reads JSON, gzipped or not."""
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)


def golden_params(config: GHNConfig) -> dict[str, Any]:
    """The deterministic weights of the golden figures, in this project's tree."""
    return public_names.from_state_dict(
        config, {n: fill(n, s) for n, s in public_names.state_dict_shapes(config).items()}
    )


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The golden value of a public weight: normals seeded by its name, scaled by its kind."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if "embed" in name:
        values *= 0.5
    elif name.endswith("ln.weight") or ".ln1.weight" in name or ".ln2.weight" in name:
        values = 1.0 + 0.1 * values
    else:
        values *= 1.0 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.05
    return values.astype(np.float32)


def tensors_error(
    tensors: Mapping[str, np.ndarray], expected: Mapping[str, Any], drawn: Mapping[str, int] | None = None
) -> float:
    """Worst relative error of tensors against digests; infinite if their names or shapes differ.

    Args:
      drawn: how many of the first entries of some tensors are drawn at random, and hence not compared.
    """
    if set(tensors) != set(expected):
        return float("inf")
    skip = drawn or {}
    return max(digest_error(tensors[name], digest, skip.get(name, 0)) for name, digest in expected.items())


def digest_error(tensor: np.ndarray, digest: Mapping[str, Any], skip: int = 0) -> float:
    """Relative error of a tensor's norm, and of its samples, but the first `skip` entries, relative to the largest."""
    if list(tensor.shape) != list(digest["shape"]):
        return float("inf")
    values = np.asarray(tensor, np.float64).ravel()
    if skip == values.size:
        return 0.0
    places = np.unique(np.linspace(0, values.size - 1, min(32, values.size)).astype(np.int64))
    sample = np.array(digest["sample"])[places >= skip]
    places = places[places >= skip]
    norm_error = abs(np.linalg.norm(values) - digest["l2"]) / max(digest["l2"], 1e-12)
    return float(max(norm_error, np.abs(values[places] - sample).max() / max(np.abs(sample).max(), 1e-12)))


def logits_error(logits: jax.Array, expected: Any) -> float:
    """Largest error relative to the largest logit, given all logits or a digest."""
    if isinstance(expected, dict):
        return digest_error(np.asarray(logits), expected)
    return float(np.abs(np.asarray(logits) - np.array(expected)).max() / np.abs(expected).max())


def same_graph(graph: Graph, expected: Mapping[str, Any]) -> bool:
    """Whether nodes, shapes, real and virtual edges agree, up to the order of nodes.

    Nodes are told apart by what they are and, as parameters have unique names, by refining that with the
    neighbours at every distance: two graphs agree if their refined labels do.
    """
    nodes = expected["nodes"]
    hops = np.zeros((len(nodes), len(nodes)), np.int64)
    for sender, receiver in expected["edges"]:
        hops[sender, receiver] = 1
    for sender, receiver, length in expected["virtual"]:
        hops[sender, receiver] = length
    ours = [
        (PRIMITIVES[primitive], name, shape)
        for primitive, name, shape in zip(graph.primitives, graph.names, graph.shapes, strict=True)
    ]
    theirs = [
        (
            primitive,
            name if name and name.endswith(("weight", "bias")) else None,
            tuple(shape) if shape else None,
        )
        for primitive, _, name, shape in nodes
    ]
    return refined_labels(ours, path_lengths(graph)) == refined_labels(theirs, hops)


def refined_labels(nodes: list[tuple], hops: np.ndarray, rounds: int = 4) -> list[int]:
    """Labels of the nodes, refined by the nodes on paths to and from them (Weisfeiler-Leman), sorted."""
    labels = [hash(node) for node in nodes]

    def around(lengths: np.ndarray) -> tuple:
        return tuple(sorted((int(lengths[j]), labels[j]) for j in np.flatnonzero(lengths)))

    for _ in range(rounds):
        labels = [hash((labels[i], around(hops[i]), around(hops[:, i]))) for i in range(len(nodes))]
    return sorted(labels)
