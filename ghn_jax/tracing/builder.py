"""Collects the nodes of a graph while a traced network is walked, and who owns which parameter."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from ghn_jax.graphs.graph import PRIMITIVES, Graph, Shape
from ghn_jax.tracing.values import Leaf, Pool, Step, View

Role = Literal["weight", "bias"]

_PRIMITIVE = {name: index for index, name in enumerate(PRIMITIVES)}
_WEIGHTED = frozenset(_PRIMITIVE[name] for name in ("conv", "sep_conv", "dil_conv"))


class Owned(NamedTuple):
    """A parameter that a node owns.

    Attributes:
      leaf: the parameter.
      node: the node.
      role: 'weight', or 'bias' for the bias of a norm layer or of a convolution or linear layer.
      shape: in PyTorch's layout, as in Graph.shapes.
      view: rearranges the leaf into that shape; None for vectors, whose order is the leaf's own.
    """

    leaf: Leaf
    node: int
    role: Role
    shape: Shape
    view: View | None


class Extracted(NamedTuple):
    """The graph of a traced network.

    Attributes:
      graph: the graph; a node is named by the parameter that it owns.
      owned: the parameters that nodes own.
      unassigned: why each other parameter has no node.
      class_nodes: nodes of the classification weight and bias; empty if the outputs come from several layers.
      ends_in_class: whether nothing follows the classification layer.
    """

    graph: Graph
    owned: tuple[Owned, ...]
    unassigned: Mapping[Leaf, str]
    class_nodes: tuple[int, ...]
    ends_in_class: bool


@dataclasses.dataclass
class _Node:
    primitive: int
    shape: Shape | None
    predecessors: frozenset[int]


class GraphBuilder:
    """Nodes so far, in topological order; node 0 is the input."""

    def __init__(self, names: Sequence[str], shapes: Sequence[Shape]) -> None:
        """Takes the name and shape of each leaf of the tree of parameters."""
        self._names, self._shapes = names, shapes
        self._nodes = [_Node(_PRIMITIVE["input"], None, frozenset())]
        self._owned: dict[Leaf, Owned] = {}
        self._unassigned: dict[Leaf, str] = {}
        self._contracted: set[int] = set()

    def node(self, primitive: str, sources: Iterable[int], shape: Shape | None = None) -> int:
        """Adds a node."""
        self._nodes.append(_Node(_PRIMITIVE[primitive], shape, frozenset(sources)))
        return len(self._nodes) - 1

    def own(
        self, leaf: Leaf, node: int, role: Role, shape: Shape, view: Sequence[Step] | None = None
    ) -> None:
        """Gives a parameter to a node, unless another node has it (weights may be shared)."""
        self._owned.setdefault(leaf, Owned(leaf, node, role, shape, None if view is None else tuple(view)))

    def own_vector(self, leaf: Leaf, node: int, role: Role) -> None:
        """Gives the scale or bias of a norm layer to its node, as `own` does."""
        size = (math.prod(self._shapes[leaf.index][len(leaf.place) :]),)
        self._nodes[node].shape = size
        self.own(leaf, node, role, size)

    def name(self, leaf: Leaf) -> str:
        """The parameter's name, with its place among stacked layers."""
        return leaf.name(self._names)

    def is_owned(self, leaf: Leaf) -> bool:
        """Whether some node has the parameter."""
        return leaf in self._owned

    def leave(self, leaves: Iterable[Leaf], reason: str) -> None:
        """Notes why parameters have no node, as far as this turns out to be so."""
        for leaf in leaves:
            self._unassigned.setdefault(leaf, reason)

    def contract(self, node: int) -> None:
        """Removes a node in the end, joining its predecessors to its successors."""
        self._contracted.add(node)

    def pool_before(self, sources: frozenset[int], origin: frozenset[int]) -> int | None:
        """The global pool over `origin` from which `sources` come through nothing but weights and norms."""
        gates = {_PRIMITIVE[name] for name in ("conv", "sep_conv", "dil_conv", "bias", "bn", "ln")}
        seen, stack = set(), list(sources)
        while stack:
            number = stack.pop()
            node = self._nodes[number]
            if number in seen:
                continue
            seen.add(number)
            if node.primitive == _PRIMITIVE["glob_avg"] and node.predecessors <= origin:
                return number
            if node.primitive in gates:
                stack.extend(node.predecessors)
        return None

    def finish(self, outputs: frozenset[int]) -> Extracted:
        """Keeps what the nodes `outputs` depend on."""
        predecessors = [set(node.predecessors) for node in self._nodes]
        for dead in sorted(self._contracted):
            for others in predecessors:
                if dead in others:
                    others.remove(dead)
                    others |= predecessors[dead]
        kept, stack = {0}, list(outputs)
        while stack:
            number = stack.pop()
            if number not in kept:
                kept.add(number)
                stack.extend(predecessors[number])
        new = {old: place for place, old in enumerate(sorted(kept))}
        owned = tuple(o._replace(node=new[o.node]) for o in self._owned.values() if o.node in new)
        edges = [(new[p], new[old]) for old in new for p in sorted(predecessors[old])]
        senders, receivers = np.array(edges, np.int32).reshape(-1, 2).T
        names: list[str | None] = [None] * len(new)
        for o in owned:
            if o.role == "weight" or names[o.node] is None:
                names[o.node] = self.name(o.leaf)
        graph = Graph(
            np.array([self._nodes[old].primitive for old in new], np.int32),
            tuple(names),
            tuple(self._nodes[old].shape for old in new),
            senders,
            receivers,
        )
        ends = frozenset(new[node] for node in outputs)
        class_nodes = _class_nodes(graph, ends)
        ends_in_class = len(ends) == 1 and ends <= set(class_nodes)
        return Extracted(graph, owned, self._missing(owned), class_nodes, ends_in_class)

    def _missing(self, owned: Sequence[Owned]) -> dict[Leaf, str]:
        """The parameters that no node owns, and why."""
        places: dict[int, set[tuple[int, ...]]] = {}
        for o in owned:
            places.setdefault(o.leaf.index, set()).add(o.leaf.place)
        missing = {}
        for index, shape in enumerate(self._shapes):
            found = places.get(index, set())
            depth = len(next(iter(found), ()))
            for place in np.ndindex(shape[:depth]):
                if place not in found:
                    leaf = Leaf(index, place)
                    missing[leaf] = self._reason(leaf)
        return missing

    def _reason(self, leaf: Leaf) -> str:
        known = self._unassigned
        reason = known.get(leaf) or next(
            (why for other, why in known.items() if other.index == leaf.index), None
        )
        return reason or ("does not reach the output" if leaf in self._owned else "is not used")


def settle(builder: GraphBuilder, pool: Pool) -> int:
    """The node of a pooling operation whose result something uses."""
    if pool.node is None:
        pool.node = builder.node(pool.primitive, pool.sources, pool.shape)
    return pool.node


def _class_nodes(graph: Graph, ends: frozenset[int]) -> tuple[int, ...]:
    """The last weight before the output and the bias on it; () if there is no single one."""
    predecessors: dict[int, list[int]] = {}
    for sender, receiver in zip(graph.senders.tolist(), graph.receivers.tolist(), strict=True):
        predecessors.setdefault(receiver, []).append(sender)
    weights, biases, stack, seen = set(), set(), list(ends), set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        primitive = int(graph.primitives[node])
        if primitive in _WEIGHTED:
            weights.add(node)
            continue
        if primitive == _PRIMITIVE["bias"]:
            biases.add(node)
        stack.extend(predecessors.get(node, []))
    if len(weights) != 1:
        return ()
    (weight,) = weights
    shape = graph.shapes[weight]
    own = [bias for bias in biases if predecessors[bias] == [weight]]
    return (weight, *own) if shape and math.prod(shape[2:]) == 1 else ()
