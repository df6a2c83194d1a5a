"""GHN presets by name, each a frozen dataclass."""

import dataclasses
from typing import Literal

from ghn_jax.runtime.errors import unknown_name


@dataclasses.dataclass(frozen=True)
class GHNConfig:
    """What a GHN is made of; defaults are those of GHN-2 on CIFAR-10.

    Attributes:
      hypernet: what computes node embeddings: a gated GNN, transformer layers that know the paths between nodes, or an
        MLP on each node alone.
      num_classes: classes of the image dataset.
      max_kernel: height and width of the decoded kernels.
      hidden: width of a node embedding.
      channels: decoded output and input channels; wider layers repeat them.
      decoder: how weights are decoded: position by position, all channels of one at once, or as products of two decoded
        matrices, whose rows and columns no GHN of this size could decode at once.
      rank: of these products.
      layers, heads: transformer layers and their attention heads; of no meaning to the others.
      window: which part of the decoded positions a smaller kernel is, and what a larger one makes of them
        (`ghn_jax.models.windows`).
      start: how weights start: as PyTorch's layers do, or with embeddings of a transformer and small last layers.
      virtual_edges: whether messages also pass between distant nodes.
      layer_norm: whether node embeddings are normalised before decoding.
      normalize: whether predicted parameters are scaled by fan-in, and those of norm layers squashed.
    """

    hypernet: Literal["gatedgnn", "graphormer", "mlp"] = "gatedgnn"
    num_classes: int = 10
    max_kernel: int = 11
    hidden: int = 32
    channels: int = 64
    decoder: Literal["full_rank", "low_rank"] = "full_rank"
    rank: int = 0
    layers: int = 1
    heads: int = 1
    window: Literal["corner", "centre"] = "corner"
    start: Literal["torch", "transformer"] = "torch"
    virtual_edges: bool = True
    layer_norm: bool = True
    normalize: bool = True


def ghn3(hidden: int, layers: int, heads: int) -> GHNConfig:
    """A GHN-3 of some size; it decodes as many channels as a node embedding has."""
    return GHNConfig(
        hypernet="graphormer",
        hidden=hidden,
        channels=hidden,
        layers=layers,
        heads=heads,
        window="centre",
        start="transformer",
    )


def logah(hidden: int, layers: int, heads: int, rank: int) -> GHNConfig:
    """A GHN-3 whose decoder is low-rank, as that of LoGAH: up to 2048 channels, none repeated [1].

    [1] Zhou et al., LoGAH: Predicting 774-Million-Parameter Transformers using Graph HyperNetworks with 1/100
    Parameters, 2024 (arXiv 2405.16287).
    """
    graphormer = ghn3(hidden, layers, heads)
    return dataclasses.replace(graphormer, channels=2048, decoder="low_rank", rank=rank)


_FAMILIES = {
    "ghn2": GHNConfig(),
    "ghn1": GHNConfig(virtual_edges=False, layer_norm=False, normalize=False),
    "mlp": GHNConfig(hypernet="mlp"),
    "ghn3-t": ghn3(hidden=64, layers=3, heads=8),
    "ghn3-s": ghn3(hidden=128, layers=5, heads=16),
    "ghn3-l": ghn3(hidden=256, layers=12, heads=16),
    "ghn3-xl": ghn3(hidden=384, layers=24, heads=16),
    "logah-t": logah(hidden=64, layers=3, heads=8, rank=32),
    "logah-s": logah(hidden=128, layers=5, heads=16, rank=90),
}

PRESETS = tuple(_FAMILIES)
"""Names that `preset` accepts: GHN-2, GHN-1, the MLP baseline, GHN-3 in its published sizes, and LoGAH."""


def preset(name: str, num_classes: int = 10, image_size: int = 32) -> GHNConfig:
    """The published configuration `name` for a dataset; decoded kernels are 11x11, or 16x16 at 224 pixels.

    Raises ValueError, with the nearest names, for an unknown one, and for more classes than a low-rank decoder has.
    """
    if name not in _FAMILIES:
        raise unknown_name("preset", name, PRESETS)
    max_kernel = 11 if image_size <= 32 else 16
    config = dataclasses.replace(_FAMILIES[name], num_classes=num_classes, max_kernel=max_kernel)
    if config.decoder == "low_rank" and num_classes > config.channels * max_kernel:
        reach = config.channels * max_kernel
        raise ValueError(
            f"`num_classes` (={num_classes}) exceeds the {reach} that {name} reaches: use another preset"
        )
    return config
