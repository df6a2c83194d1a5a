"""Abstract values of a traced network: what each array depends on.

The graph of a network is found by running its jaxpr on these instead of arrays (see `ghn_jax.tracing.walk`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from ghn_jax.graphs.graph import Shape
from ghn_jax.tracing.views import View, carried, varying_axes


class Leaf(NamedTuple):
    """An array of a model: a leaf of its tree of parameters or state, or a slice of one that a loop runs over.

    Attributes:
      index: which leaf of the tree.
      place: indices into its leading axes, where layers are stacked; () otherwise.
    """

    index: int
    place: tuple[int, ...] = ()

    def name(self, names: Sequence[str]) -> str:
        """Its name, given those of the tree's leaves."""
        return names[self.index] + "".join(f"[{i}]" for i in self.place)


Axes = tuple[tuple[int, ...], ...] | None
"""For each axis of a leaf, those of an array along which it lies; None where this is not known."""


class Statistics(NamedTuple):
    """State that an array is made of, element by element, as a batch norm's running statistics are used.

    Attributes:
      axes: the arrays of state, and along which axes each lies.
      roots: those that went through a root.
      inverse: whether they are inverse roots.
      offset: whether something was added, as a batch norm's epsilon.
    """

    axes: Mapping[Leaf, Axes] = {}
    roots: frozenset[Leaf] = frozenset()
    inverse: bool = False
    offset: bool = False


NO_STATISTICS = Statistics()


class Constant(NamedTuple):
    """Depends on neither the parameters nor the input.

    Attributes:
      statistics: the state that it is made of.
      value: its value, where it is known.
    """

    statistics: Statistics = NO_STATISTICS
    value: Any = None


class Weight(NamedTuple):
    """Depends on parameters, not on the input.

    Attributes:
      views: the parameters, each with its rearrangement, or None where elements were mixed.
      axes: axes along which it varies.
      statistics: the state that it is made of.
    """

    views: Mapping[Leaf, View | None]
    axes: frozenset[int]
    statistics: Statistics = NO_STATISTICS


@dataclasses.dataclass(eq=False)
class Pool:
    """A reduction of activations: a pooling node if anything but a statistic is made of it.

    Attributes:
      experts: the nodes of layers side by side, if it is one of each.
    """

    primitive: str
    sources: frozenset[int]
    shape: Shape | None
    experts: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()


@dataclasses.dataclass(eq=False)
class Norm:
    """A normalisation whose scale and bias may still come; a node once one of them does.

    Attributes:
      mean, variance: the running statistics that it uses, if any.
      offset: whether something is added to the variance.
    """

    primitive: str
    sources: frozenset[int]
    features: frozenset[int] | None = None
    node: int | None = None
    scale: Leaf | None = None
    bias: Leaf | None = None
    mean: Leaf | None = None
    variance: Leaf | None = None
    offset: bool = False

    @property
    def is_of_data(self) -> bool:
        """Whether it brings images to a known mean and deviation, rather than those of a batch: it learns nothing."""
        return self.node is None and self.sources == {0} and not self.offset


class Activation(NamedTuple):
    """Depends on the input.

    Attributes:
      sources: nodes it comes from; operations that are no nodes hand them on.
      level: number of reductions since then, 0 for a feature map, more for its statistics.
      pool: the reduction, if level > 0, that becomes a node when something uses the reduced map.
      norm: the normalisation that just happened.
      features: axes of the output features of the last convolution or linear layer, where they are known.
      experts: of layers that run side by side, the axis along which they lie, perhaps the outer part of it, and their
        nodes.
      centre: the running mean that was just subtracted.
      centred: whether a parameter was just subtracted.
      folded: parameters multiplied into a statistic.
      over_batch: a statistic over the images of a batch.
      rooted: went through a root, as standard deviations do.
      exponential: went through an exponential.
      softmax: is an exponential divided by its sum.
      scores: is a product of activations, as attention scores are.
    """

    sources: frozenset[int]
    level: int = 0
    pool: Pool | None = None
    norm: Norm | None = None
    features: frozenset[int] | None = None
    experts: tuple[int, tuple[int, ...]] | None = None
    centre: Leaf | None = None
    centred: bool = False
    folded: Mapping[Leaf, View | None] = {}
    over_batch: bool = False
    rooted: bool = False
    exponential: bool = False
    softmax: bool = False
    scores: bool = False

    def further(self, **changes: Any) -> "Activation":
        """The same map after an operation that ends what just happened to it."""
        return self._replace(**{"norm": None, "experts": None, "centre": None, "centred": False, **changes})

    def moved(self, places: Mapping[int, tuple[int, ...]], shape: Shape) -> "Activation":
        """The same map of a new shape: `places` says for each old axis which new ones it became."""
        experts = None
        if self.experts and (place := places.get(self.experts[0], ())):
            is_whole = len(place) == 1 or shape[place[0]] == len(self.experts[1])
            experts = (place[0], self.experts[1]) if is_whole else None
        features = None if self.features is None else carried(self.features, places)
        return self._replace(features=features, experts=experts)


Value = Constant | Weight | Activation

CONSTANT = Constant()


def parameter(leaf: Leaf, shape: Shape) -> Weight:
    """A whole parameter."""
    return Weight({leaf: ()}, varying_axes(shape))


def state(leaf: Leaf, shape: Shape, dtype: Any) -> Constant:
    """An array of state; a real one with axes may be a running statistic."""
    if not shape or not jnp.issubdtype(dtype, jnp.floating):
        return CONSTANT
    axes = tuple((axis,) if size > 1 else () for axis, size in enumerate(shape))
    return Constant(Statistics({leaf: axes}))
