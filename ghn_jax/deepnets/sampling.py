"""Samples the architectures of DeepNets-1M, split by split, by the published rules.

Architecture number i of a split is a pure function of (seed, split, i): nothing has to be stored, and a million
training architectures can be visited in any order.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021, Section 3 and Appendix A.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ghn_jax.deepnets.architectures import NAMED, OPS, Architecture, Edge, Genotype
from ghn_jax.deepnets.image_sizes import CIFAR_SIZE, IMAGENET_SIZE
from ghn_jax.deepnets.lowering import UnreachableOutput, capacity_of, lower, lower_resnet50
from ghn_jax.executor.program import Lowered
from ghn_jax.runtime.errors import unknown_name

CHANNELS = tuple(range(32, 129, 16))
"""Channels drawn in training."""

FC_DIMS = tuple(range(64, 513, 64))
"""Hidden widths of the classifier drawn in training."""

MAX_NODES = 2200
"""Nodes that the graphs of a meta-batch of up to 8 may have together; a larger one may have more in proportion."""


@dataclasses.dataclass(frozen=True)
class Widths:
    """From which size on networks are heavy, and of how many widths lighter ones have a choice."""

    millions: float
    cells: int
    medium: int
    light: int


@dataclasses.dataclass(frozen=True)
class Draw:
    """Which networks a training step has; the defaults are those of GHN-2 [1, Appendix A.1].

    Attributes:
      widths: how channels are drawn, of CHANNELS.
      widths_of_large: the same for other images than of 32 pixels.
      narrowest: whether all have the fewest channels instead.
      work: most multiply-adds (`Lowered.work`) on an image of 32 x 32.
      places: most places of the flat parameter vector.
      norm_free: share of the networks drawn that lose their batch norm, as those of the split bnfree have none.
    """

    widths: Widths = Widths(millions=0.8, cells=12, medium=2, light=3)
    widths_of_large: Widths | None = None
    narrowest: bool = False
    work: float = math.inf
    places: float = math.inf
    norm_free: float = 0.0

    def changes(self) -> dict[str, Any]:
        """What is not as for GHN-2, in JSON values."""
        published = dataclasses.asdict(Draw())
        return {name: part for name, part in dataclasses.asdict(self).items() if part != published[name]}


DRAWS = {
    "published": Draw(),
    # of the published ones 2 % have no batch norm, and those are shallow
    "norm_free": Draw(norm_free=1 / 8),
    # the same without the heaviest 30 %, on which two thirds of the compute go
    "lighter": Draw(work=175e6, norm_free=1 / 8),
    # as GHN-3 is trained
    "wider": Draw(widths_of_large=Widths(millions=2.0, cells=14, medium=4, light=5)),
    # Below the median work of the split train. One network in 30 of those has more places, for which the decoder would
    # be compiled at another size too.
    "narrow": Draw(narrowest=True, work=70e6, places=1 << 20),
}


class Split(NamedTuple):
    """The rules of one split.

    Attributes:
      size: number of architectures.
      cells: fewest and most cells.
      deep: numbers of cells, one drawn at random, beyond which a network counts as deep.
      steps: fewest sum nodes of a cell, most for a deep network, most for any.
      max_parameters: larger networks (at 32 channels) are left out.
      norm: whether networks have batch norm; None: all but some of the shallow ones.
    """

    size: int
    cells: tuple[int, int] = (4, 18)
    deep: tuple[int, ...] = (7, 8, 9, 10)
    steps: tuple[int, int, int] = (1, 2, 4)
    max_parameters: int = 10**7
    norm: bool | None = None


SPLITS: dict[str, Split] = {
    "train": Split(1_000_000),
    "val": Split(500),
    "test": Split(500),
    "wide": Split(100),
    "deep": Split(100, cells=(10, 36), deep=(18,), max_parameters=10**8),
    "dense": Split(100, steps=(2, 6, 10), max_parameters=10**8),
    "bnfree": Split(100, norm=False),
    "search": Split(100_000, cells=(6, 20), deep=(10,), steps=(1, 3, 6), norm=True),
}
"""Sampled splits; `wide` are the `test` architectures with more channels."""

PREDEFINED = ("resnet50", "vit")
"""Architectures of the split `predefined`."""

_STREAM = {split: number for number, split in enumerate(SPLITS)}


def sample(split: str, index: int, seed: int = 0, image_size: int = CIFAR_SIZE) -> Architecture:
    """Architecture number `index` of a split, for images of this size.

    Outside `train` its channels are drawn too, as in training [Section 3]; those of `wide` are four times
    (other sizes than 32: twice) those of the same `test` architecture.

    Raises ValueError for an unknown split, or an index outside it.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    size = SPLITS[split].size
    if not 0 <= index < size:
        raise ValueError(f"`index` (={index}) is outside the split {split!r}: choose from 0 to {size - 1}")
    if split == "wide":
        narrow = sample("test", index, seed, image_size)
        return dataclasses.replace(narrow, C=narrow.C * (4 if image_size == CIFAR_SIZE else 2))
    rng = np.random.default_rng((seed, _STREAM[split], index))
    arch, capacity = _sample(rng, SPLITS[split], image_size)
    return arch if split == "train" else draw_width(rng, arch, capacity)


def named(name: str, num_classes: int = 10, image_size: int = CIFAR_SIZE) -> Lowered:
    """A predefined architecture, lowered; ValueError, with the nearest names, for an unknown one."""
    if name.lower() == "resnet50":
        return lower_resnet50(num_classes, image_size)
    if name.lower() not in NAMED:
        raise unknown_name("arch", name, [*NAMED, "resnet50"])
    return lower(NAMED[name.lower()], num_classes, image_size)


class MetaBatch(NamedTuple):
    """The architectures of one training step.

    Attributes:
      indices: their places in the train split.
      architectures: with the channels drawn for this step.
      networks: the same, lowered.
    """

    indices: tuple[int, ...]
    architectures: tuple[Architecture, ...]
    networks: tuple[Lowered, ...]


def meta_batch(
    seed: int,
    step: int,
    size: int,
    num_classes: int = 10,
    image_size: int = CIFAR_SIZE,
    stored: Sequence[Architecture] | None = None,
    draw: str = "published",
) -> MetaBatch:
    """The training architectures of a step: a pure function of its arguments, within MAX_NODES.

    Args:
      stored: the architectures to choose from; None samples them.
      draw: one of DRAWS.

    Raises ValueError if `size` is so large that the graphs can hardly fit, and if no architecture is light enough.
    """
    rng = np.random.default_rng((seed, len(_STREAM), step))
    rules = DRAWS[draw]
    heaviest = rules.work * (image_size / CIFAR_SIZE) ** 2
    count = SPLITS["train"].size if stored is None else len(stored)
    for _ in range(1000):
        indices = [int(i) for i in rng.integers(count, size=size)]
        architectures, networks, nodes = [], [], 0
        for place, index in enumerate(indices):
            for _ in range(1000):
                arch = _with_width(rng, seed, index, image_size, stored, rules)
                network = lower(arch, num_classes, image_size)
                if network.work <= heaviest and network.flat_size <= rules.places:
                    break
                indices[place] = index = int(rng.integers(count))
            else:
                raise ValueError(
                    f"`draw` (={draw!r}) finds no network light enough among {count} architectures: use "
                    "--draw=published"
                )
            architectures.append(arch)
            networks.append(network)
            nodes += network.graph.num_nodes
            if nodes > MAX_NODES * max(1, size / 8):
                break
        else:
            return MetaBatch(tuple(indices), tuple(architectures), tuple(networks))
    raise ValueError(
        f"`meta_batch_size` (={size}) is too large: its graphs exceed {MAX_NODES} nodes; lower it"
    )


def _with_width(
    rng: np.random.Generator,
    seed: int,
    index: int,
    image_size: int,
    stored: Sequence[Architecture] | None,
    draw: Draw,
) -> Architecture:
    """Training architecture number `index`, its width drawn by `rng`."""
    if stored is None:
        own = np.random.default_rng((seed, _STREAM["train"], index))
        arch, capacity = _sample(own, SPLITS["train"], image_size)
    else:
        arch, capacity = stored[index], None
    if draw.norm_free and rng.random() < draw.norm_free:
        arch = dataclasses.replace(arch, norm=False)
    if draw.narrowest:
        return dataclasses.replace(arch, C=CHANNELS[0], fc_dim=FC_DIMS[0])
    wider = draw.widths_of_large if image_size != CIFAR_SIZE else None
    if capacity is None or wider:
        capacity = capacity_of(arch, 10, CIFAR_SIZE if wider else image_size)
    return draw_width(rng, arch, capacity, wider or draw.widths)


def draw_width(
    rng: np.random.Generator, arch: Architecture, capacity: int, widths: Widths = Draw.widths
) -> Architecture:
    """Draws channels and hidden width, smaller ones for heavier networks [1, Appendix A.1].

    Args:
      capacity: parameters of the network with 32 channels.
    """

    millions = capacity / 1e6
    dense = any(op in ("conv_5x5", "conv_7x7") for op in arch.genotype.ops)
    fc_dim = _choice(rng, FC_DIMS[:4])
    if millions > widths.millions or not arch.glob_avg or dense or arch.n_cells > widths.cells:
        channels = CHANNELS[0]
    elif millions > 0.4 or arch.n_cells > 10:
        channels = _choice(rng, CHANNELS[: widths.medium])
    elif millions > 0.2 or arch.n_cells > 8:
        channels = _choice(rng, CHANNELS[: widths.light])
    else:
        channels = _choice(rng, CHANNELS)
        fc_dim = _choice(rng, FC_DIMS) if channels <= 64 else fc_dim
    return dataclasses.replace(arch, C=channels, fc_dim=fc_dim)


def _choice(rng: np.random.Generator, values: tuple[int, ...]) -> int:
    return values[rng.integers(len(values))]  # much faster than rng.choice


def _sample(rng: np.random.Generator, rules: Split, image_size: int) -> tuple[Architecture, int]:
    """Draws until an architecture is accepted; returns its number of parameters too."""
    while True:
        arch = _draw(rng, rules)
        capacity = _capacity(arch, image_size, rules.max_parameters) if arch else None
        if arch and capacity:
            return arch, capacity


def _draw(rng: np.random.Generator, rules: Split) -> Architecture | None:
    """One draw; None if it is of a kind that is left out (hard to train, or heavy)."""
    cells = int(rng.integers(rules.cells[0], rules.cells[1] + 1))
    deep = _choice(rng, rules.deep)
    steps = int(rng.integers(rules.steps[0], rules.steps[2 if cells <= deep else 1] + 1))
    genotype = _draw_genotype(rng, steps)
    kernel = _choice(rng, (3, 5, 7))
    by_cell = [[op for op, _ in cell] for cell in (genotype.normal, genotype.reduce)]
    has_conv = any("conv" in op for op in genotype.ops)
    vit, cse = "msa" in genotype.ops, "cse" in genotype.ops
    heavy = any(sum(op in ("conv_5x5", "conv_7x7") for op in ops) > 1 for ops in by_cell)
    if (
        heavy
        or any(ops.count("cse") > 1 for ops in by_cell)
        or (cse and not has_conv)
        or not (vit or has_conv)
    ):
        return None
    mult = _choice(rng, (1, 2))
    stem_type = int(rng.integers(2))
    shallow = cells <= rules.cells[0] + 1 and steps <= rules.steps[1]
    return Architecture(
        genotype,
        cells,
        C_mult=mult,
        ks=kernel,
        stem_type=stem_type,  # pyright: ignore[reportArgumentType]
        stem_pool=bool(stem_type == 0 and rng.random() > 0.5),
        norm=bool(rng.integers(2)) if rules.norm is None and shallow else rules.norm is not False,
        preproc=_draw_preproc(rng, rules, steps, mult, vit),
        glob_avg=bool(vit or cells > deep or rng.random() > 0.1),
        fc_layers=int(rng.integers(1, 3)),
    )


def _draw_preproc(rng: np.random.Generator, rules: Split, steps: int, mult: int, vit: bool) -> bool:
    if steps > 1 or mult > 1:
        return True
    if rules is SPLITS["search"]:
        return bool(rng.random() > (0.8 if vit else 0.2))
    return bool(not vit or rng.random() > 0.8)


def _draw_genotype(rng: np.random.Generator, steps: int) -> Genotype:
    """DARTS' derivation of cells from random operation weights: the two strongest edges into each sum node."""
    pools_only = bool(rng.random() > 0.5)
    drop_concat = bool(steps > 1 and rng.random() > 0.5)

    def cell(allowed: int) -> tuple[Edge, ...]:
        strength = np.exp(1e-3 * rng.standard_normal((steps * (steps + 3) // 2, allowed)))
        strength /= strength.sum(axis=1, keepdims=True)
        if steps == 1:
            strength[:, 0] = 0.0  # a single step cannot spare an edge to `none`
        best, most = strength.argmax(axis=1).tolist(), strength.max(axis=1).tolist()
        edges: list[Edge] = []
        for step in range(steps):
            first = step * (step + 3) // 2  # row of the edge from state 0 into this sum node
            candidates = most[first : first + step + 2]
            strongest = sorted(range(step + 2), key=candidates.__getitem__, reverse=True)[:2]
            edges.extend((OPS[best[first + j]], j) for j in strongest)
        return tuple(edges)

    concat = tuple(i for i in range(2, steps + 2) if i == steps + 1 or not drop_concat or rng.random() > 0.5)
    without_weights = OPS.index("sep_conv_3x3")
    return Genotype(cell(len(OPS)), concat, cell(without_weights if pools_only else len(OPS)), concat)


def _capacity(arch: Architecture, image_size: int, limit: int) -> int | None:
    """Parameters for images of this size; None if they exceed the limit at either published size, or if there is no
    output. So the architectures of a split are the same at all sizes, but for the widths that are drawn.
    """
    try:
        capacity = {CIFAR_SIZE: capacity_of(arch, 10, CIFAR_SIZE)}
    except UnreachableOutput:
        return None
    # at 224 pixels only an unpooled classifier is much larger, so most networks need no second look
    near = not arch.glob_avg or capacity[CIFAR_SIZE] > limit // 2
    if near or image_size == IMAGENET_SIZE:
        capacity[IMAGENET_SIZE] = capacity_of(arch, 10, IMAGENET_SIZE)
    if max(capacity.values()) > limit:
        return None
    return capacity[image_size] if image_size in capacity else capacity_of(arch, 10, image_size)
