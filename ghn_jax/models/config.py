"""GHN presets by name, each a frozen dataclass."""

import dataclasses
from typing import Literal

from ghn_jax.runtime.errors import unknown_name


@dataclasses.dataclass(frozen=True)
class GHNConfig:
    """What a GHN is made of; defaults are those of GHN-2 on CIFAR-10.

    Attributes:
      hypernet: how node embeddings are computed, by a gated GNN or by an MLP on each node alone.
      num_classes: classes of the image dataset.
      max_kernel: height and width of the decoded kernels; larger ones repeat them.
      hidden: width of a node embedding.
      virtual_edges: whether messages also pass between distant nodes.
      layer_norm: whether node embeddings are normalised before decoding.
      normalize: whether predicted parameters are scaled by fan-in, and those of norm layers squashed.
    """

    hypernet: Literal["gatedgnn", "mlp"] = "gatedgnn"
    num_classes: int = 10
    max_kernel: int = 11
    hidden: int = 32
    virtual_edges: bool = True
    layer_norm: bool = True
    normalize: bool = True

    channels = 64
    """Decoded output and input channels; wider layers repeat them."""


_FAMILIES = {
    "ghn2": GHNConfig(),
    "ghn1": GHNConfig(virtual_edges=False, layer_norm=False, normalize=False),
    "mlp": GHNConfig(hypernet="mlp"),
}

PRESETS = tuple(_FAMILIES)
"""Names that `preset` accepts: GHN-2, GHN-1 and the MLP baseline of the paper."""


def preset(name: str, num_classes: int = 10, image_size: int = 32) -> GHNConfig:
    """The published configuration `name` for a dataset; decoded kernels are 11x11, or 16x16 at 224 pixels.

    Raises ValueError, with the nearest names, for an unknown one.
    """
    if name not in _FAMILIES:
        raise unknown_name("preset", name, PRESETS)
    max_kernel = 11 if image_size == 32 else 16
    return dataclasses.replace(_FAMILIES[name], num_classes=num_classes, max_kernel=max_kernel)
