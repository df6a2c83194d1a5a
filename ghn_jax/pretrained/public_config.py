"""The configuration of a GHN, inferred from the names and shapes of its tensors in the public code."""

import math
import re
from collections.abc import Mapping
from typing import Any

from ghn_jax.models.config import GHNConfig

Shapes = Mapping[str, tuple[int, ...]]

_GHN3_TABLES = ("centrality_embed_in", "centrality_embed_out", "input_dist_embed")


def current_name(name: str) -> str:
    """The name of a tensor in today's public code: some files have tables of GHN-3 at the top."""
    name = name.removeprefix("module.")  # of training on several devices
    return f"gnn.0.{name}" if name.partition(".")[0] in _GHN3_TABLES else name


def infer(shapes: Shapes, public: Mapping[str, Any] | None = None) -> GHNConfig:
    """The configuration of a GHN.

    Args:
      shapes: of its tensors, by public name.
      public: the configuration beside them, where a file has one: it says whether predicted parameters are normalised,
        which shapes do not.

    Raises ValueError if it is none.
    """
    hidden = _size(shapes, "embed.weight", 1)
    rows, positions = _size(shapes, "decoder.conv.2.weight", 0), _size(shapes, "decoder.fc.0.weight", 0)
    channels, max_kernel = math.isqrt(rows), math.isqrt(positions // (4 * hidden))
    if channels**2 != rows or max_kernel**2 * 4 * hidden != positions:
        raise ValueError(
            f"it decodes {rows} channels at {positions // (4 * hidden)} positions, which are no squares"
        )
    layer_norm = "ln.weight" in shapes
    common: dict[str, Any] = {
        "num_classes": _size(shapes, "decoder.class_layer_predictor.1.weight", 0),
        "max_kernel": max_kernel,
        "hidden": hidden,
        "channels": channels,
        "layer_norm": layer_norm,
        "normalize": bool((public or {}).get("weight_norm", layer_norm)),
    }
    layers = sum(re.fullmatch(r"gnn\.\d+\.ln1\.weight", name) is not None for name in shapes)
    if layers:
        heads = _size(shapes, "gnn.0.attn.proj_e.2.weight", 0)
        return GHNConfig(
            "graphormer", layers=layers, heads=heads, window="centre", start="transformer", **common
        )
    if "gnn.gru.weight_ih" in shapes:
        return GHNConfig("gatedgnn", virtual_edges="gnn.mlp_ve.fc.0.weight" in shapes, **common)
    if "gnn.fc.0.weight" in shapes:
        return GHNConfig("mlp", **common)
    raise ValueError("it has neither a GatedGNN nor transformer layers nor an MLP under 'gnn.'")


def _size(shapes: Shapes, name: str, axis: int) -> int:
    shape = shapes.get(name, ())
    if len(shape) <= axis or not shape[axis]:
        raise ValueError(f"it is no GHN: it has no tensor {name!r} of at least {axis + 1} axes")
    return shape[axis]
