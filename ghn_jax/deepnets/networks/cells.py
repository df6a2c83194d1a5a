"""An architecture of DeepNets-1M as a plain Flax module, which follows the published network layer by layer.

It is what predicted parameters are used with outside of this library. It shares no code with
`ghn_jax.deepnets.lowering` and `ghn_jax.executor`, which compute the same function, and so serves to test them.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021, Section 3.
"""

import math

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ghn_jax.deepnets.architectures import Architecture, Edge
from ghn_jax.deepnets.networks.ops import (
    FactorizedReduction,
    Map,
    Norm,
    ReluConv,
    batch_norm,
    conv,
    max_pool,
    operation,
    subsample,
)

_SIZES = (16, *range(32, 513, 32))


class CellNetwork(nn.Module):
    """A stem, a chain of cells which read the outputs of the two before them, and a classifier [1].

    Its parameters are those that the logits depend on, named as in the public code; see `to_params`.

    Attributes:
      arch: the architecture.
      num_classes: number of logits.
      image_size: height and width of the images, 16, 32, 64, ..., 512; the stem depends on it.
      running_statistics: whether batch norm keeps running statistics in training (`batch_stats`), for evaluation; a GHN
        predicts none, so else it uses the statistics of the batch.
    """

    arch: Architecture
    num_classes: int = 10
    image_size: int = 32
    running_statistics: bool = False

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], train: bool = False
    ) -> Float[Array, "batch label"]:
        """The logits of normalised images.

        Args:
          images: of the size `image_size`.
          train: whether to apply dropout, which takes `rngs={"dropout": key}`, and to update running statistics.

        Raises ValueError for images of another size, or if `none` operations cut the output off.
        """
        arch, size = self.arch, self.image_size
        if size not in _SIZES:
            raise ValueError(f"`image_size` (={size}) must be 16, or a multiple of 32 from 32 to 512")
        if images.shape[1:] != (size, size, 3):
            raise ValueError(f"`images` of shape {images.shape} must have shape (batch, {size}, {size}, 3)")

        needed, norm = needed_states(arch), self._norm(train)
        s0, s1 = self._stem(images, norm, both=1 in needed[0] or (len(needed) > 1 and 0 in needed[1]))
        features, halve = arch.C, arch.stem_type == 1
        for index, states in enumerate(needed):
            features *= arch.C_mult if arch.is_reduction(index) else 1
            cell = Cell(arch, index, features, halve and not arch.is_vit, states, norm, name=f"cells.{index}")
            s0, s1 = s1, cell(s0, s1)
            halve = arch.is_reduction(index)
        if s1 is None:
            raise ValueError("`arch.genotype` joins no path of operations to the output: replace some 'none'")
        return self._classifier(s1, train)

    def _norm(self, train: bool) -> Norm:
        if not self.arch.norm:
            return None
        if not self.running_statistics:
            return "batch"
        return "update" if train else "running"

    def _stem(self, images: Map, norm: Norm, both: bool) -> tuple[Map, Map | None]:
        """The inputs of the first cell; the second may be left out unless `both` are needed."""
        arch = self.arch
        if arch.is_vit:
            patch = math.ceil(self.image_size / 14)  # 14 patches to a side, or fewer
            padding = math.ceil(-self.image_size % patch / 2)
            x = nn.Conv(arch.C, (patch, patch), patch, padding, use_bias=False, name="stem0")(images)
            x = PositionalEncoding(name="pos_enc")(x)
            return x, x
        stride = 1 if self.image_size < 64 else 2 if self.image_size < 128 else 4
        if arch.stem_type == 0:
            features = arch.C * (3 if arch.preproc and stride == 1 else 1)
            x = conv(features, arch.ks, "stem.0", stride)(images)
            x = batch_norm(x, norm, "stem.1")
            x = max_pool(x, stride=2) if arch.stem_pool else x
            return x, x
        first, second = ((1, 1), (2, 1), (2, 2))[stride // 2]
        x = batch_norm(conv(arch.C // 2, arch.ks, "stem0.0", first)(images), norm, "stem0.1")
        x = batch_norm(conv(arch.C, 3, "stem0.3", second)(nn.relu(x)), norm, "stem0.4")
        # The public second half rectifies its input in place, so the cell sees that too. It matters
        # without preprocessing only, which else begins with a ReLU.
        x = nn.relu(x)
        if not both:
            return x, None
        return x, batch_norm(conv(arch.C, 3, "stem1.1", stride=2)(x), norm, "stem1.2")

    def _classifier(self, x: Map, train: bool) -> Float[Array, "batch label"]:
        arch = self.arch
        x = x.mean((1, 2), keepdims=True) if arch.glob_avg else x
        features = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)  # in PyTorch's order
        if arch.fc_layers == 1:
            return nn.Dense(self.num_classes, name="classifier.0")(features)
        hidden = nn.relu(nn.Dense(arch.fc_dim, name="classifier.0")(features))
        hidden = nn.Dropout(0.5, deterministic=not train)(hidden)
        return nn.Dense(self.num_classes, name="classifier.3")(hidden)


class Cell(nn.Module):
    """One cell: a state is the sum of two operations on earlier ones, the output a concatenation of states.

    A state is None if only `none` operations lead to it, or if it is not needed.

    Attributes:
      arch: the architecture.
      index: place in the chain of cells.
      features: channels of each state.
      halve: whether the first input has twice the resolution of the second.
      needed: the states to compute.
      norm: the batch norm of its convolutions.
    """

    arch: Architecture
    index: int
    features: int
    halve: bool
    needed: frozenset[int]
    norm: Norm

    @nn.compact
    def __call__(self, s0: Map | None, s1: Map | None) -> Map | None:
        """The output, given those of the two cells before."""
        edges, concat = _topology(self.arch, self.index)
        states = [self._preprocess(s0, 0, self.halve), self._preprocess(s1, 1, False)]
        for state in range(2, 2 + len(edges) // 2):
            terms = []
            for j in (2 * state - 4, 2 * state - 3):
                op, source = edges[j]
                x = states[source]
                if state in self.needed and op != "none" and x is not None:
                    reduces = self.arch.is_reduction(self.index) and source < 2 and not self.arch.is_vit
                    stride = 2 if reduces else 1
                    terms.append(operation(op, x, self.features, stride, self.norm, f"_ops.{j}"))
            states.append(sum(terms[1:], terms[0]) if terms else None)
        return _concatenate([states[state] for state in concat])

    def _preprocess(self, x: Map | None, which: int, halve: bool) -> Map | None:
        """Fits an input to the channels, and the resolution, of the cell's states."""
        if x is None or which not in self.needed:
            return None
        if not self.arch.preproc:
            return subsample(x, 2) if halve else x
        name = f"preprocess{which}"
        if halve:
            return FactorizedReduction(self.features, self.norm, name=name)(x)
        return ReluConv(self.features, 1, 1, self.norm, name=name)(x)


class PositionalEncoding(nn.Module):
    """Adds a learned map."""

    @nn.compact
    def __call__(self, x: Map) -> Map:
        """The sum."""
        return x + self.param("embedding", nn.initializers.normal(1.0), x.shape[1:])


def needed_states(arch: Architecture) -> list[frozenset[int]]:
    """For each cell the states from which a path without `none` leads to the logits; 0 and 1 are its inputs.

    Cell i reads maps i and i + 1 and makes map i + 2; maps 0 and 1 come from the stem. No path need lead to
    these states from the images.
    """
    needed_maps, needed = {arch.n_cells + 1}, []
    for index in reversed(range(arch.n_cells)):
        edges, concat = _topology(arch, index)
        states = set(concat) if index + 2 in needed_maps else set()
        for j in reversed(range(len(edges))):
            op, source = edges[j]
            if 2 + j // 2 in states and op != "none":
                states.add(source)
        needed_maps.update(index + source for source in (0, 1) if source in states)
        needed.append(frozenset(states))
    return needed[::-1]


def _topology(arch: Architecture, index: int) -> tuple[tuple[Edge, ...], tuple[int, ...]]:
    genotype = arch.genotype
    if arch.is_reduction(index):
        return genotype.reduce, genotype.reduce_concat
    return genotype.normal, genotype.normal_concat


def _concatenate(maps: list[Map | None]) -> Map | None:
    """Maps side by side; one that is None counts as zeros, unless all are."""
    present = [x for x in maps if x is not None]
    if not present:
        return None
    zeros = jnp.zeros_like(present[0])
    return jnp.concatenate([zeros if x is None else x for x in maps], axis=-1)
