"""Finds the classification layers of a network: the last weights before its logits."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from ghn_jax.graphs.graph import Shape

_WEIGHTED = frozenset({"conv", "sep_conv", "dil_conv"})


class Heads(NamedTuple):
    """The classification layers of a network.

    Attributes:
      nodes: their weights and biases; empty if some last weight makes other than one number for each label.
      at_end: whether nothing but a sum of them follows.
    """

    nodes: tuple[int, ...]
    at_end: bool


def find_heads(
    primitives: Sequence[str],
    shapes: Sequence[Shape | None],
    predecessors: Sequence[set[int]],
    outputs: frozenset[int],
    labels: int,
) -> Heads:
    """The last weights before the nodes `outputs`, and the biases on them."""
    weights: list[int] = []
    others: list[int] = []
    stack, seen = sorted(outputs, reverse=True), set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if primitives[node] in _WEIGHTED:
            weights.append(node)
            continue
        others.append(node)
        stack.extend(sorted(predecessors[node], reverse=True))
    if not weights or not all(_is_class(shapes[node], labels) for node in weights):
        return Heads((), False)
    biases = [n for n in others if primitives[n] == "bias" and predecessors[n] <= set(weights)]
    at_end = all(primitives[node] == "sum" for node in others if node not in biases)
    return Heads((*sorted(weights), *sorted(biases)), at_end)


def _is_class(shape: Shape | None, labels: int) -> bool:
    return shape is not None and shape[0] == labels and math.prod(shape[2:]) == 1
