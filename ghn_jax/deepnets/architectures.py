"""Architectures of DeepNets-1M: stacked DARTS-like cells, described by a genotype and a few arguments.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021, Section 3.
[2] Liu, Simonyan, Yang, DARTS: Differentiable Architecture Search, ICLR 2019.
[3] Chen et al., Progressive Differentiable Architecture Search, ICCV 2019.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from ghn_jax.runtime.errors import unknown_name

OPS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "conv_1x1",
    "conv_7x1_1x7",
    "conv_3x3",
    "conv_5x5",
    "conv_7x7",
    "msa",
    "cse",
)
"""Operations of a cell, in the order in which the published generator draws them."""

Edge = tuple[str, int]
"""An operation and the index of the state it reads: 0 and 1 are the cell's inputs."""


class Genotype(NamedTuple):
    """Topology of the normal and the reduction cell [2].

    Each cell has `steps` sum nodes with two `Edge`s each; `*_concat` lists the states (2 is the first sum
    node) whose concatenation is the cell's output.
    """

    normal: tuple[Edge, ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[Edge, ...]
    reduce_concat: tuple[int, ...]

    @property
    def ops(self) -> list[str]:
        """Operations of both cells."""
        return [op for op, _ in self.normal + self.reduce]

    def to_dict(self) -> dict[str, Any]:
        """The published JSON form."""
        return {
            "normal": [list(edge) for edge in self.normal],
            "normal_concat": list(self.normal_concat),
            "reduce": [list(edge) for edge in self.reduce],
            "reduce_concat": list(self.reduce_concat),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Genotype":
        """Reads the published JSON form; raises ValueError for what is no genotype."""
        missing = set(cls._fields) - set(data)
        if missing:
            raise ValueError(f"`genotype` lacks {sorted(missing)}: it needs the keys {cls._fields}")
        genotype = cls(
            tuple((str(op), int(index)) for op, index in data["normal"]),
            tuple(int(index) for index in data["normal_concat"]),
            tuple((str(op), int(index)) for op, index in data["reduce"]),
            tuple(int(index) for index in data["reduce_concat"]),
        )
        genotype.validate()
        return genotype

    def validate(self) -> None:
        """Raises ValueError if an operation is unknown or an index out of range."""
        for cell in ("normal", "reduce"):
            edges, concat = getattr(self, cell), getattr(self, f"{cell}_concat")
            if not edges or len(edges) % 2:
                raise ValueError(
                    f"`genotype.{cell}` has {len(edges)} edges: it needs two for each sum node, and at least two"
                )
            for position, (op, index) in enumerate(edges):
                if op not in OPS:
                    raise unknown_name(f"genotype.{cell}[{position}]", op, OPS)
                if not 0 <= index < 2 + position // 2:
                    raise ValueError(
                        f"`genotype.{cell}[{position}]` reads state {index}: only states 0 to "
                        f"{1 + position // 2} exist there"
                    )
            states = 2 + len(edges) // 2
            if not concat or not all(2 <= index < states for index in concat):
                raise ValueError(
                    f"`genotype.{cell}_concat` (={concat}) must list states from 2 to {states - 1}"
                )


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A cell-based network; the field names are the published ones.

    Attributes:
      genotype: the two cells.
      n_cells: number of cells; cells n_cells // 3 and 2 * n_cells // 3 are reduction cells.
      C: channels of the first cell, a multiple of 16.
      C_mult: factor on the channels at each reduction cell, 1 or 2.
      ks: kernel size of the stem, 3, 5 or 7.
      stem_type: 0 simple (one convolution), 1 ImageNet-style (three, which halve the resolution).
      stem_pool: whether a simple stem ends with a max-pool of stride 2.
      norm: whether convolutions are followed by batch norm; None in the published files means False.
      preproc: whether 1x1 convolutions fit the inputs of each cell.
      glob_avg: whether the classifier sees globally averaged features, or else the whole map.
      fc_layers: fully connected layers of the classifier, 1 or 2.
      fc_dim: width between two of them.
    """

    genotype: Genotype
    n_cells: int
    C: int = 32
    C_mult: int = 2
    ks: int = 3
    stem_type: Literal[0, 1] = 0
    stem_pool: bool = False
    norm: bool = True
    preproc: bool = True
    glob_avg: bool = True
    fc_layers: int = 1
    fc_dim: int = 256

    def __post_init__(self) -> None:
        self.genotype.validate()
        allowed = {"C_mult": (1, 2), "ks": (3, 5, 7), "stem_type": (0, 1), "fc_layers": (1, 2)}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be one of {values}")
        if self.n_cells < 1:
            raise ValueError(f"`n_cells` (={self.n_cells}) must be at least 1")
        if self.C < 16 or self.C % 16:
            raise ValueError(f"`C` (={self.C}) must be a positive multiple of 16")
        if self.fc_layers > 1 and (self.fc_dim < 8 or self.fc_dim % 8):
            raise ValueError(f"`fc_dim` (={self.fc_dim}) must be a positive multiple of 8")
        concats = max(len(self.genotype.normal_concat), len(self.genotype.reduce_concat))
        if not self.preproc and (concats > 1 or self.C_mult > 1):
            raise ValueError(
                "`preproc` (=False) needs cells that concatenate one state and `C_mult` 1: set preproc to True"
            )

    @property
    def is_vit(self) -> bool:
        """Whether the network has attention: then its stem makes patches and no cell reduces the map."""
        return "msa" in self.genotype.ops

    def is_reduction(self, cell: int) -> bool:
        """Whether the cell with this index is a reduction cell."""
        return cell > 0 and cell in (self.n_cells // 3, 2 * self.n_cells // 3)

    def to_dict(self) -> dict[str, Any]:
        """The published JSON form (`norm` is 'bnorm' or None)."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return fields | {"genotype": self.genotype.to_dict(), "norm": "bnorm" if self.norm else None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Architecture":
        """Reads the published JSON form; keys that are no argument (num_nodes, num_params) are ignored."""
        names = {f.name for f in dataclasses.fields(cls)}
        if "genotype" not in data or "n_cells" not in data:
            raise ValueError(f"an architecture needs `genotype` and `n_cells`, got the keys {sorted(data)}")
        arguments = {name: value for name, value in data.items() if name in names}
        arguments["genotype"] = Genotype.from_dict(data["genotype"])
        arguments["norm"] = bool(data.get("norm", True))
        return cls(**arguments)


def _genotype(normal: str, normal_concat: str, reduce: str, reduce_concat: str) -> Genotype:
    """Builds a genotype from lines such as 'sep_conv_3x3:0 skip_connect:1' and '2 3'."""

    def edges(text: str) -> tuple[Edge, ...]:
        pairs = (word.split(":") for word in text.split())
        return tuple((op, int(index)) for op, index in pairs)

    def indices(text: str) -> tuple[int, ...]:
        return tuple(int(index) for index in text.split())

    return Genotype(edges(normal), indices(normal_concat), edges(reduce), indices(reduce_concat))


DARTS = _genotype(
    "sep_conv_3x3:0 sep_conv_3x3:1 sep_conv_3x3:0 sep_conv_3x3:1 "
    "sep_conv_3x3:1 skip_connect:0 skip_connect:0 dil_conv_3x3:2",
    "2 3 4 5",
    "max_pool_3x3:0 max_pool_3x3:1 skip_connect:2 max_pool_3x3:1 "
    "max_pool_3x3:0 skip_connect:2 skip_connect:2 max_pool_3x3:1",
    "2 3 4 5",
)
"""The second-order CIFAR-10 cells of [2]."""

PDARTS = _genotype(
    "skip_connect:0 dil_conv_3x3:1 skip_connect:0 sep_conv_3x3:1 "
    "sep_conv_3x3:1 sep_conv_3x3:3 sep_conv_3x3:0 dil_conv_5x5:4",
    "2 3 4 5",
    "avg_pool_3x3:0 sep_conv_5x5:1 sep_conv_3x3:0 dil_conv_5x5:2 "
    "max_pool_3x3:0 dil_conv_3x3:1 dil_conv_3x3:1 dil_conv_5x5:3",
    "2 3 4 5",
)
"""The CIFAR-10 cells of [3]."""

VIT = _genotype("none:0 msa:1", "2", "none:0 avg_pool_3x3:1", "2")
"""Attention blocks alone, the visual transformer of [1]."""

NAMED: dict[str, Architecture] = {
    "darts": Architecture(DARTS, n_cells=14, C=32, stem_type=0, fc_layers=1),
    "pdarts": Architecture(PDARTS, n_cells=14, C=32, stem_type=0, fc_layers=1),
    "vit": Architecture(VIT, n_cells=12, C=128, C_mult=1, preproc=False, fc_layers=1),
}
"""Cell-based architectures by name, besides ResNet-50 (`ghn_jax.deepnets.lowering.lower_resnet50`)."""
