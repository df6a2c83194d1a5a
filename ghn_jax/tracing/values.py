"""Abstract values of a traced network: what each array depends on.

The graph of a network is found by running its jaxpr on these instead of arrays (see `ghn_jax.tracing.walk`).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from ghn_jax.graphs.graph import Shape


class Leaf(NamedTuple):
    """A parameter tensor: a leaf of the tree of parameters, or a slice of one that a loop runs over.

    Attributes:
      index: which leaf of the tree.
      place: indices into its leading axes, where layers are stacked; () otherwise.
    """

    index: int
    place: tuple[int, ...] = ()

    def name(self, names: Sequence[str]) -> str:
        """Its name, given those of the tree's leaves."""
        return names[self.index] + "".join(f"[{i}]" for i in self.place)


class Step(NamedTuple):
    """A rearrangement of an array's elements.

    Attributes:
      kind: 'reshape' to a shape, 'transpose' by a permutation, 'rev' along axes, or 'drop' the first few rows, which
        are of tokens that have no place.
      argument: the shape, permutation, axes, or number of rows.
    """

    kind: Literal["reshape", "transpose", "rev", "drop"]
    argument: tuple[int, ...]

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """The rearranged array; a view of the old one where possible."""
        match self.kind:
            case "reshape":
                return array.reshape(self.argument)
            case "transpose":
                return array.transpose(self.argument)
            case "rev":
                return np.flip(array, self.argument)
            case "drop":
                return array[self.argument[0] :]


View = tuple[Step, ...]
"""How a parameter is rearranged between its leaf and its use."""


class Constant(NamedTuple):
    """Depends on neither the parameters nor the input.

    Attributes:
      state: comes from arrays that are no parameters, such as running statistics.
      rooted: went through a root, as standard deviations do.
    """

    state: bool = False
    rooted: bool = False


class Weight(NamedTuple):
    """Depends on parameters, not on the input.

    Attributes:
      views: the parameters, each with its rearrangement, or None where elements were mixed, repeated or left out.
      axes: axes along which it varies.
      rooted: as in Constant, for a factor that is `state` too.
      cut: whether some elements of its parameters may be missing.
    """

    views: Mapping[Leaf, View | None]
    axes: frozenset[int]
    rooted: bool = False
    cut: bool = False


@dataclasses.dataclass(eq=False)
class Pool:
    """A reduction of activations: a pooling node if anything but a statistic is made of it."""

    primitive: str
    sources: frozenset[int]
    shape: Shape | None
    node: int | None = None


@dataclasses.dataclass(eq=False)
class Norm:
    """A normalisation whose scale and bias may still come; a node once one of them does."""

    primitive: str
    sources: frozenset[int]
    node: int | None = None
    scale: Leaf | None = None
    bias: Leaf | None = None


class Activation(NamedTuple):
    """Depends on the input.

    Attributes:
      sources: nodes it comes from; operations that are no nodes hand them on.
      level: number of reductions since then, 0 for a feature map, more for its statistics.
      pool: the reduction, if level > 0, that becomes a node when something uses the reduced map.
      norm: the normalisation that just happened.
      features: axes of output features, right after a convolution or linear layer.
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
    folded: Mapping[Leaf, View | None] = {}
    over_batch: bool = False
    rooted: bool = False
    exponential: bool = False
    softmax: bool = False
    scores: bool = False


Value = Constant | Weight | Activation

CONSTANT = Constant()


def parameter(leaf: Leaf, shape: Shape) -> Weight:
    """A whole parameter."""
    return Weight({leaf: ()}, varying_axes(shape))


def varying_axes(shape: Shape) -> frozenset[int]:
    """Axes along which an array of this shape can vary."""
    return frozenset(axis for axis, size in enumerate(shape) if size > 1)


def rearranged(weight: Weight, step: Step, shape: Shape) -> Weight:
    """A weight after a rearrangement of elements into an array of this shape."""
    views = {leaf: None if view is None else (*view, step) for leaf, view in weight.views.items()}
    if step.kind == "transpose":
        axes = frozenset(new for new, old in enumerate(step.argument) if old in weight.axes)
    else:
        axes = varying_axes(shape) if step.kind == "reshape" else weight.axes
    return weight._replace(views=views, axes=axes)


def mixed(weight: Weight, shape: Shape, cut: bool = False) -> Weight:
    """A weight after an operation that loses track of single elements."""
    return weight._replace(views=dict.fromkeys(weight.views), axes=varying_axes(shape), cut=weight.cut or cut)


def joined_views(weights: list[tuple[Weight, Shape]], shape: Shape) -> Mapping[Leaf, View | None]:
    """Views after an elementwise operation: those of operands that were not broadcast remain."""
    views: dict[Leaf, View | None] = {}
    for weight, own_shape in weights:
        whole = math.prod(own_shape) == math.prod(shape)
        for leaf, view in weight.views.items():
            views[leaf] = views.get(leaf) or (view if whole else None)
    return views
