"""Collects the nodes of a graph while a traced network is walked, and who owns which parameter."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.graphs.graph import PRIMITIVES, Graph, Shape
from ghn_jax.tracing.heads import Heads, find_heads
from ghn_jax.tracing.values import Leaf, Norm, Pool
from ghn_jax.tracing.views import View, is_cut, positions

Role = Literal["weight", "bias"]

_PRIMITIVE = {name: index for index, name in enumerate(PRIMITIVES)}


class Owned(NamedTuple):
    """A parameter, or a part of one, that a node owns.

    Attributes:
      leaf: the parameter.
      node: the node.
      role: 'weight', or 'bias' for the bias of a norm layer or of a convolution or linear layer.
      shape: in PyTorch's layout, as in Graph.shapes.
      view: rearranges the leaf, or the part of it, into that shape; None for vectors, whose order is the leaf's own.
      function: functions of single elements between the leaf and the layer, to be inverted.
      turn: number among layers that lie side by side in one parameter: a GHN decodes the same for all of them, so each
        takes other channels of it.
    """

    leaf: Leaf
    node: int
    role: Role
    shape: Shape
    view: View | None
    function: View = ()
    turn: int = 0


Held = tuple[Leaf, View | None]
"""A parameter, or the part of it, that some layer holds."""


class Extracted(NamedTuple):
    """The graph of a traced network.

    Attributes:
      graph: the graph; a node is named by the parameter that it owns.
      owned: the parameters that nodes own.
      unassigned: why each other parameter has no node.
      class_nodes: nodes of the classification weights and biases; empty if there are none.
      ends_in_class: whether nothing but their sum follows the classification layers.
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

    def __init__(self, names: Sequence[str], leaves: Sequence[jax.ShapeDtypeStruct]) -> None:
        """Takes the name, shape and dtype of each leaf of the tree of parameters."""
        self._names, self._leaves = names, leaves
        self._nodes = [_Node(_PRIMITIVE["input"], None, frozenset())]
        self._claims: dict[Leaf, list[Owned]] = {}
        self._lookups: dict[Leaf, list[Owned]] = {}
        self._held: list[Held] = []
        self._unassigned: dict[Leaf, str] = {}
        self._contracted: set[int] = set()
        self._elsewhere: set[int] = set()
        self.norms: list[Norm] = []
        self.met: set[Leaf] = set()
        self.tokens: set[Leaf] = set()
        """Parameters that stand, whole, beside activations, as class tokens do."""

    def node(self, primitive: str, sources: Iterable[int], shape: Shape | None = None) -> int:
        """Adds a node."""
        self._nodes.append(_Node(_PRIMITIVE[primitive], shape, frozenset(sources)))
        return len(self._nodes) - 1

    def own(self, owned: Owned, *, is_lookup: bool = False) -> None:
        """Gives a parameter to a node, unless an earlier node that reaches the output has it (weights may be shared).

        Only what a node decodes can be given to it: real numbers, as many as the node has. Where a table is looked up
        (`is_lookup`), any layer that it is the weight of comes first, as of tied embeddings the classification layer.
        """
        dtype = self._leaves[owned.leaf.index].dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            kind = "complex numbers" if jnp.issubdtype(dtype, jnp.complexfloating) else f"{dtype} numbers"
            self.leave([owned.leaf], f"has {kind}, and real ones are predicted")
        elif owned.view is None and math.prod(self.shape(owned.leaf)) != math.prod(owned.shape):
            self.leave([owned.leaf], f"is not of the size {owned.shape} of the layer that uses it")
        else:
            (self._lookups if is_lookup else self._claims).setdefault(owned.leaf, []).append(owned)
            self._held.append((owned.leaf, owned.view))

    def resize(self, node: int, shape: Shape) -> None:
        """Sets the shape of a node's parameter."""
        self._nodes[node].shape = shape

    def shape(self, leaf: Leaf) -> Shape:
        """The parameter's shape."""
        return tuple(self._leaves[leaf.index].shape[len(leaf.place) :])

    def name(self, leaf: Leaf) -> str:
        """The parameter's name, with its place among stacked layers."""
        return leaf.name(self._names)

    def is_owned(self, leaf: Leaf) -> bool:
        """Whether some node has the parameter."""
        return leaf in self._claims

    @property
    def num_claims(self) -> int:
        """How often a parameter was given to a node."""
        return len(self._held)

    def held_since(self, claims: int) -> frozenset[Held]:
        """Which parameters were given to nodes since there were so many claims."""
        return frozenset(self._held[claims:])

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

    def predecessors(self) -> list[set[int]]:
        """Of each node; those of contracted nodes in their place."""
        predecessors = [set(node.predecessors) for node in self._nodes]
        for dead in sorted(self._contracted):
            for others in predecessors:
                if dead in others:
                    others.remove(dead)
                    others |= predecessors[dead]
        return predecessors

    def heads(self, outputs: frozenset[int], labels: int) -> Heads:
        """The classification layers before outputs with so many labels."""
        nodes = self._nodes
        return find_heads(
            [PRIMITIVES[n.primitive] for n in nodes],
            [n.shape for n in nodes],
            self.predecessors(),
            outputs,
            labels,
        )

    def finish(
        self, outputs: frozenset[int], labels: int | None, others: frozenset[int] = frozenset()
    ) -> Extracted:
        """Keeps what the nodes `outputs` depend on; if they are logits, of so many `labels`, beside `others`."""
        predecessors = self.predecessors()
        kept = _all_before(outputs, predecessors)
        self._elsewhere = _all_before(others, predecessors)
        new = {old: place for place, old in enumerate(sorted(kept))}
        owned, partly = self._owners(kept)
        owned = tuple(o._replace(node=new[o.node]) for o in owned)
        edges = [(new[p], new[old]) for old in new for p in sorted(predecessors[old])]
        senders, receivers = np.array(edges, np.int32).reshape(-1, 2).T
        names: list[str | None] = [None] * len(new)
        for o in owned:
            if o.role == "weight" or names[o.node] is None:
                names[o.node] = self.name(o.leaf) + _label(o.view, self.shape(o.leaf))
        graph = Graph(
            np.array([self._nodes[old].primitive for old in new], np.int32),
            tuple(names),
            tuple(self._nodes[old].shape for old in new),
            senders,
            receivers,
        )
        heads = Heads((), False) if labels is None else self.heads(outputs, labels)
        class_nodes = tuple(new[node] for node in heads.nodes)
        return Extracted(graph, owned, self._missing(owned) | partly, class_nodes, heads.at_end)

    def _owners(self, kept: set[int]) -> tuple[list[Owned], dict[Leaf, str]]:
        """Who owns what, of the nodes that are kept; and what is owned only in part."""
        origins = self._origins()
        owners: list[Owned] = []
        partly: dict[Leaf, str] = {}
        for leaf in {**self._claims, **self._lookups}:
            claims = self._claims.get(leaf, []) + self._lookups.get(leaf, [])
            live = [claim for claim in claims if claim.node in kept]
            whole = next((claim for claim in live if not is_cut(claim.view or ())), None)
            if whole:
                stacked = [other for other in owners if leaf.place and other.leaf.index == leaf.index]
                alike = sum(origins[whole.node] == origins[other.node] for other in stacked)
                owners.append(whole._replace(turn=alike))
            if whole or not live:
                continue
            owner = np.full(math.prod(self.shape(leaf)), -1)
            parts: list[Owned] = []
            for claim in live:
                assert claim.view is not None
                part = positions(claim.view, self.shape(leaf)).ravel()
                if (owner[part] == -1).all():
                    owner[part] = len(parts)
                    alike = sum(origins[claim.node] == origins[other.node] for other in parts)
                    parts.append(claim._replace(turn=alike))
                elif (owner[part] != owner[part][0]).any() or (owner == owner[part][0]).sum() != len(part):
                    partly[leaf] = "is used in slices that overlap"
            if leaf in partly:
                continue
            owners += parts
            if missing := int((owner == -1).sum()):
                partly[leaf] = (
                    f"is used in slices, and no layer uses {missing:,} of its {len(owner):,} elements"
                )
        return owners, partly

    def _origins(self) -> list[int]:
        """A number for each node, equal for those that a GHN cannot tell apart: of one shape, after nodes alike."""
        known: dict[Any, int] = {}
        numbers: list[int] = []
        for node in self._nodes:
            before = tuple(sorted(numbers[p] for p in node.predecessors))
            numbers.append(known.setdefault((node.primitive, node.shape, before), len(known)))
        return numbers

    def _missing(self, owned: Sequence[Owned]) -> dict[Leaf, str]:
        """The parameters that no node owns, and why."""
        places: dict[int, set[tuple[int, ...]]] = {}
        for o in owned:
            places.setdefault(o.leaf.index, set()).add(o.leaf.place)
        missing = {}
        for index, leaf in enumerate(self._leaves):
            found = places.get(index, set())
            if () in found:
                continue
            depth = max((len(place) for place in found), default=0)
            for place in np.ndindex(leaf.shape[:depth]):
                if not any(place[: len(have)] == have for have in found):
                    missing[Leaf(index, place)] = self._reason(Leaf(index, place))
        return missing

    def _reason(self, leaf: Leaf) -> str:
        known = self._unassigned
        reason = known.get(leaf) or next(
            (why for other, why in known.items() if other.index == leaf.index), None
        )
        depth = len(leaf.place)
        claims = [
            claim.node
            for other, claimed in self._claims.items()
            if other.index == leaf.index and other.place[:depth] == leaf.place
            for claim in claimed
        ]
        if not self._elsewhere.isdisjoint(claims):
            return "reaches another output, not the logits"
        return ("does not reach the output" if claims else reason) or "is not used"


def _all_before(outputs: Iterable[int], predecessors: Sequence[set[int]]) -> set[int]:
    """The nodes that some depend on, and the input."""
    found, stack = {0}, list(outputs)
    while stack:
        number = stack.pop()
        if number not in found:
            found.add(number)
            stack.extend(predecessors[number])
    return found


def settle(builder: GraphBuilder, pool: Pool) -> tuple[int, ...]:
    """The node of a pooling operation whose result something uses; of layers side by side, one for each."""
    if not pool.nodes:
        before = [frozenset([node]) for node in pool.experts] or [pool.sources]
        pool.nodes = tuple(builder.node(pool.primitive, sources, pool.shape) for sources in before)
    return pool.nodes


def _label(view: View | None, shape: Shape) -> str:
    """Which part of a parameter a view takes, as it is indexed."""
    if not view or not is_cut(view):
        return ""
    part = positions(view, shape).ravel()
    ranges = [(int(places.min()), int(places.max()) + 1) for places in np.unravel_index(part, shape)]
    if math.prod(stop - start for start, stop in ranges) != len(part):
        return "[...]"
    parts = [
        ":" if (start, stop) == (0, size) else str(start) if stop - start == 1 else f"{start}:{stop}"
        for (start, stop), size in zip(ranges, shape, strict=True)
    ]
    while parts and parts[-1] == ":":
        parts.pop()
    return f"[{', '.join(parts)}]" if parts else ""
