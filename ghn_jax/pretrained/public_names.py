"""Converts the weights of a GHN between this project's tree and the public PyTorch state_dict.

Public names and shapes are those of facebookresearch/ppuda; both directions are exact.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ghn_jax.graphs import PRIMITIVES
from ghn_jax.models.config import GHNConfig
from ghn_jax.models.shape_encoder import shape_tables

Tensor = Float[np.ndarray, "..."]


class _Entry(NamedTuple):
    """One tensor: its path here, its public shape, and how to turn the public tensor into ours and back."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    to_ours: Callable[[Tensor], Tensor]
    to_public: Callable[[Tensor], Tensor]


def from_state_dict(config: GHNConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The params tree of a GHN, from the public tensors by name.

    Raises ValueError, naming the first tensor that is missing, unknown or of another shape.
    """
    entries = _entries(config)
    unknown = set(state) - set(entries)
    if unknown:
        raise ValueError(
            f"`state` has {sorted(unknown)[0]!r}, which a GHN of this configuration lacks: {config}"
        )
    params: dict[str, Any] = {}
    for name, entry in entries.items():
        if name not in state or tuple(state[name].shape) != entry.shape:
            got = tuple(state[name].shape) if name in state else "nothing"
            raise ValueError(
                f"`state[{name!r}]` must have shape {entry.shape}, got {got}: choose another preset"
            )
        *parents, leaf = entry.path
        tree = params
        for parent in parents:
            tree = tree.setdefault(parent, {})
        tree[leaf] = np.ascontiguousarray(entry.to_ours(np.asarray(state[name], np.float32)))
    return params


def to_state_dict(config: GHNConfig, params: Mapping[str, Any]) -> dict[str, Tensor]:
    """The public tensors by name: the inverse of `from_state_dict`."""
    state = {}
    for name, entry in _entries(config).items():
        value: Any = params
        for key in entry.path:
            value = value[key]
        state[name] = np.ascontiguousarray(entry.to_public(np.asarray(value)))
    return state


def state_dict_shapes(config: GHNConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each public tensor, by name."""
    return {name: entry.shape for name, entry in _entries(config).items()}


def _entries(config: GHNConfig) -> dict[str, _Entry]:
    c, s, full, classes = config.hidden, config.max_kernel, config.channels, config.num_classes
    entries: dict[str, _Entry] = {}

    def raw(name: str, path: tuple[str, ...], *shape: int) -> None:
        entries[name] = _Entry(path, shape, lambda t: t, lambda t: t)

    def dense(
        name: str, path: tuple[str, ...], inputs: int, outputs: int, conv: bool = False, leaf: str = ""
    ) -> None:
        """A linear layer, or a 1x1 convolution; `leaf` prefixes the names of its two arrays."""
        shape = (outputs, inputs, 1, 1) if conv else (outputs, inputs)
        weight, bias = (f"{leaf}weight", f"{leaf}bias") if leaf else ("kernel", "bias")
        entries[f"{name}.weight"] = _Entry(
            (*path, weight), shape, lambda t: t.reshape(t.shape[:2]).T, lambda t: t.T.reshape(shape)
        )
        raw(f"{name}.bias", (*path, bias), outputs)

    tables = shape_tables(classes, s)
    raw("embed.weight", ("primitive_embedding", "weight"), len(PRIMITIVES), c)
    raw(
        "shape_enc.embed_channel.weight",
        ("shape_encoder", "embed_channel", "weight"),
        len(tables.channels) + 1,
        c // 4,
    )
    raw(
        "shape_enc.embed_spatial.weight",
        ("shape_encoder", "embed_spatial", "weight"),
        len(tables.kernels) + 1,
        c // 4,
    )
    if config.layer_norm:
        raw("ln.weight", ("ln", "scale"), c)
        raw("ln.bias", ("ln", "bias"), c)
    if config.hypernet == "mlp":
        dense("gnn.fc.0", ("gnn", "fc.0"), c, c)
        dense("gnn.fc.2", ("gnn", "fc.2"), c, c)
    else:
        middle = c // 2 if config.virtual_edges else c
        for mlp in ("mlp", "mlp_ve") if config.virtual_edges else ("mlp",):
            dense(f"gnn.{mlp}.fc.0", ("gnn", mlp, "fc.0"), c, middle)
            dense(f"gnn.{mlp}.fc.2", ("gnn", mlp, "fc.2"), middle, c)
        for gate in ("ih", "hh"):
            raw(f"gnn.gru.weight_{gate}", ("gnn", "gru", f"weight_{gate}"), 3 * c, c)
            raw(f"gnn.gru.bias_{gate}", ("gnn", "gru", f"bias_{gate}"), 3 * c)

    def decoder(name: str, inputs: int, outputs: int, conv: bool = False) -> None:
        dense(name, ("decoder",), inputs, outputs, conv, leaf=f"{name}.")

    decoder("decoder.conv.0", 4 * c, 8 * c, conv=True)
    decoder("decoder.class_layer_predictor.1", full, classes, conv=True)
    decoder("decoder_1d.fc.0", c, 2 * c)
    decoder("decoder_1d.fc.2", 2 * c, 2 * full)
    decoder("bias_class.1", full, classes)
    entries["decoder.fc.0.weight"] = _Entry(  # out features are (channel, y, x)
        ("decoder", "decoder.fc.0.weight"),
        (4 * c * s * s, c),
        lambda t: t.reshape(4 * c, s, s, c).transpose(1, 2, 3, 0),
        lambda t: t.transpose(3, 0, 1, 2).reshape(4 * c * s * s, c),
    )
    entries["decoder.fc.0.bias"] = _Entry(
        ("decoder", "decoder.fc.0.bias"),
        (4 * c * s * s,),
        lambda t: t.reshape(4 * c, s, s).transpose(1, 2, 0),
        lambda t: t.transpose(2, 0, 1).reshape(-1),
    )
    entries["decoder.conv.2.weight"] = _Entry(  # out features are (out channel, in channel)
        ("decoder", "decoder.conv.2.weight"),
        (full * full, 8 * c, 1, 1),
        lambda t: t.reshape(full, full, 8 * c).transpose(2, 1, 0),
        lambda t: t.transpose(2, 1, 0).reshape(full * full, 8 * c, 1, 1),
    )
    entries["decoder.conv.2.bias"] = _Entry(
        ("decoder", "decoder.conv.2.bias"),
        (full * full,),
        lambda t: t.reshape(full, full).T,
        lambda t: t.T.reshape(-1),
    )
    return entries
