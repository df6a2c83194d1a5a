"""Converts the weights of a GHN between this project's tree and the public PyTorch state_dict.

Public names and shapes are those of facebookresearch/ppuda, and of SamsungSAILMontreal/ghn3 for GHN-3; both directions
are exact.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float

from ghn_jax.graphs import PRIMITIVES
from ghn_jax.models import low_rank
from ghn_jax.models.config import GHNConfig
from ghn_jax.models.graphormer import MAX_DEGREE, MAX_DISTANCE, PATHS
from ghn_jax.models.shape_encoder import shape_tables

Tensor = Float[np.ndarray, "..."]

_BLOCK = 1 << 24
"""Entries of a tensor that are read at a time."""
_LINE = 16  # entries that lie in one line of the cache: fewer are not written next to each other


class Rows(Protocol):
    """A tensor, in memory or in a file, of which ranges of the first axis can be read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    def __getitem__(self, part: slice, /) -> np.ndarray:
        """These entries of its first axis."""
        ...


class _Entry(NamedTuple):
    """One tensor: public and ours hold the same numbers in another order.

    Attributes:
      path: its path here.
      shape: its public shape.
      split: the same with channels and positions as axes of their own.
      axes: the order in which ours has the axes of `split`.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    split: tuple[int, ...]
    axes: tuple[int, ...]

    def to_ours(self, public: Rows) -> Tensor:
        """Ours, read in blocks, so that little more than itself is in memory."""
        ours = _aligned(tuple(self.split[axis] for axis in self.axes))
        as_split = ours.transpose(np.argsort(self.axes))
        rows = self.shape[0] // self.split[0]
        step = max(1, _BLOCK // max(1, math.prod(self.split[1:])) // _LINE * _LINE)
        for start in range(0, self.split[0], step):
            block = as_split[start : start + step]
            block[...] = public[start * rows : (start + len(block)) * rows].reshape(block.shape)
        return ours

    def to_public(self, ours: Tensor) -> Tensor:
        """The inverse of `to_ours`."""
        return np.ascontiguousarray(ours.transpose(np.argsort(self.axes))).reshape(self.shape)


def _aligned(shape: tuple[int, ...]) -> Tensor:
    """An uninitialised array that JAX takes over without a copy."""
    memory = np.empty(math.prod(shape) + _LINE, np.float32)
    start = -memory.ctypes.data % (4 * _LINE) // 4
    return memory[start : start + math.prod(shape)].reshape(shape)


def from_state_dict(config: GHNConfig, state: Mapping[str, Rows]) -> dict[str, Any]:
    """The params tree of a GHN, from the public tensors by name.

    Raises ValueError, naming the tensors that are missing or unknown, or the first one of another shape.
    """
    entries = _entries(config)
    unknown, missing = sorted(set(state) - set(entries)), sorted(set(entries) - set(state))
    for names, what in ((unknown, "has {}, which a GHN of this configuration lacks"), (missing, "lacks {}")):
        if names:
            listed = ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if names[3:] else "")
            raise ValueError(f"`state` {what.format(listed)}: {config}")
    params: dict[str, Any] = {}
    for name, entry in entries.items():
        if _core(state[name].shape) != _core(entry.shape):
            got = tuple(state[name].shape)
            raise ValueError(
                f"`state[{name!r}]` must have shape {entry.shape}, got {got}: choose another preset"
            )
        *parents, leaf = entry.path
        tree = params
        for parent in parents:
            tree = tree.setdefault(parent, {})
        tree[leaf] = entry.to_ours(state[name])
    return params


def _core(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without unit axes at its end: what is linear is kept as a 1x1 convolution in some files."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return tuple(shape)


def to_state_dict(config: GHNConfig, params: Mapping[str, Any]) -> dict[str, Tensor]:
    """The public tensors by name: the inverse of `from_state_dict`."""
    state = {}
    for name, entry in _entries(config).items():
        value: Any = params
        for key in entry.path:
            value = value[key]
        state[name] = entry.to_public(np.asarray(value))
    return state


def state_dict_shapes(config: GHNConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each public tensor, by name."""
    return {name: entry.shape for name, entry in _entries(config).items()}


class _Entries:
    """Collects the tensors of a GHN."""

    def __init__(self) -> None:
        self.by_name: dict[str, _Entry] = {}

    def add(
        self,
        name: str,
        path: tuple[str, ...],
        shape: tuple[int, ...],
        split: tuple[int, ...] | None = None,
        axes: tuple[int, ...] | None = None,
    ) -> None:
        """A tensor; the same here and there unless `split` and `axes` are given."""
        split = split or shape
        self.by_name[name] = _Entry(path, shape, split, axes or tuple(range(len(split))))

    def raw(self, name: str, path: tuple[str, ...], *shape: int) -> None:
        """A tensor that is the same here and there."""
        self.add(name, path, shape)

    def norm(self, name: str, path: tuple[str, ...], size: int) -> None:
        """A layer norm."""
        self.raw(f"{name}.weight", (*path, "scale"), size)
        self.raw(f"{name}.bias", (*path, "bias"), size)

    def kernel(self, name: str, path: tuple[str, ...], inputs: int, outputs: int, conv: bool = False) -> None:
        """The weight of a linear layer, or of a 1x1 convolution."""
        shape = (outputs, inputs, 1, 1) if conv else (outputs, inputs)
        self.add(f"{name}.weight", path, shape, (outputs, inputs), (1, 0))

    def dense(self, name: str, path: tuple[str, ...], inputs: int, outputs: int) -> None:
        """A linear layer."""
        self.kernel(name, (*path, "kernel"), inputs, outputs)
        self.raw(f"{name}.bias", (*path, "bias"), outputs)


@functools.cache
def _entries(config: GHNConfig) -> dict[str, _Entry]:
    entries, c = _Entries(), config.hidden
    tables, shapes = shape_tables(config.num_classes, config.max_kernel), "shape_encoder"
    entries.raw("embed.weight", ("primitive_embedding", "weight"), len(PRIMITIVES), c)
    for table, sizes in (("embed_channel", tables.channels), ("embed_spatial", tables.kernels)):
        entries.raw(f"shape_enc.{table}.weight", (shapes, table, "weight"), len(sizes) + 1, c // 4)
    if config.layer_norm:
        entries.norm("ln", ("ln",), c)
    _PROPAGATION[config.hypernet](entries, config)
    _DECODER[config.decoder](entries, config)
    return entries.by_name


def _mlp(entries: _Entries, config: GHNConfig) -> None:
    c = config.hidden
    entries.dense("gnn.fc.0", ("gnn", "fc.0"), c, c)
    entries.dense("gnn.fc.2", ("gnn", "fc.2"), c, c)


def _gated_gnn(entries: _Entries, config: GHNConfig) -> None:
    c = config.hidden
    middle = c // 2 if config.virtual_edges else c
    for mlp in ("mlp", "mlp_ve") if config.virtual_edges else ("mlp",):
        entries.dense(f"gnn.{mlp}.fc.0", ("gnn", mlp, "fc.0"), c, middle)
        entries.dense(f"gnn.{mlp}.fc.2", ("gnn", mlp, "fc.2"), middle, c)
    for gate in ("ih", "hh"):
        entries.raw(f"gnn.gru.weight_{gate}", ("gnn", "gru", f"weight_{gate}"), 3 * c, c)
        entries.raw(f"gnn.gru.bias_{gate}", ("gnn", "gru", f"bias_{gate}"), 3 * c)


def _graphormer(entries: _Entries, config: GHNConfig) -> None:
    c = config.hidden
    sizes = {
        "centrality_embed_in": MAX_DEGREE,
        "centrality_embed_out": MAX_DEGREE,
        "input_dist_embed": MAX_DISTANCE,
    }
    for table, largest in sizes.items():  # the first layer owns them, there
        entries.raw(f"gnn.0.{table}.weight", ("gnn", table, "weight"), largest + 1, c)
    entries.raw("gnn.0.attn.edge_embed.embed.weight", ("gnn", "paths", "edge_embed"), PATHS, c)
    entries.dense("gnn.0.attn.proj_e.0", ("gnn", "paths", "proj_e", "fc.0"), 2 * c, c)
    entries.dense("gnn.0.attn.proj_e.2", ("gnn", "paths", "proj_e", "fc.2"), c, config.heads)
    for layer in range(config.layers):
        name, path = f"gnn.{layer}", ("gnn", str(layer))
        for norm in ("ln1", "ln2"):
            entries.norm(f"{name}.{norm}", (*path, norm), c)
        entries.kernel(f"{name}.attn.to_qkv", (*path, "attn", "to_qkv"), c, 3 * c)
        entries.dense(f"{name}.attn.to_out.0", (*path, "attn", "to_out.0"), c, c)
        entries.dense(f"{name}.ff.net.0", (*path, "ff.net.0"), c, 4 * c)
        entries.dense(f"{name}.ff.net.3", (*path, "ff.net.3"), 4 * c, c)


_PROPAGATION = {"gatedgnn": _gated_gnn, "graphormer": _graphormer, "mlp": _mlp}


def _full_rank(entries: _Entries, config: GHNConfig) -> None:
    c, s, full, classes = config.hidden, config.max_kernel, config.channels, config.num_classes
    convolutional = config.hypernet != "graphormer"  # linear layers of the same meaning, there

    def raw(name: str, *shape: int) -> None:
        entries.raw(name, ("decoder", name), *shape)

    def layer(name: str, inputs: int, outputs: int, conv: bool = False) -> None:
        entries.kernel(name, ("decoder", f"{name}.weight"), inputs, outputs, conv)
        raw(f"{name}.bias", outputs)

    layer("decoder.conv.0", 4 * c, 8 * c, convolutional)
    layer("decoder.class_layer_predictor.1", full, classes, convolutional)
    layer("decoder_1d.fc.0", c, 2 * c)
    layer("decoder_1d.fc.2", 2 * c, 2 * full)
    layer("bias_class.1", full, classes)
    conv = (1, 1) if convolutional else ()
    forms = {
        # out features are (channel, y, x)
        "decoder.fc.0.weight": ((4 * c * s * s, c), (4 * c, s, s, c), (1, 2, 3, 0)),
        "decoder.fc.0.bias": ((4 * c * s * s,), (4 * c, s, s), (1, 2, 0)),
        # out features are (out channel, in channel)
        "decoder.conv.2.weight": ((full * full, 8 * c, *conv), (full, full, 8 * c), (2, 1, 0)),
        "decoder.conv.2.bias": ((full * full,), (full, full), (1, 0)),
    }
    for name, form in forms.items():
        entries.add(name, ("decoder", name), *form)


def _low_rank(entries: _Entries, config: GHNConfig) -> None:
    """No file with such a decoder is in circulation: these names are ours."""
    for name, layer in low_rank.layers(config).items():
        inputs, outputs = layer.kernel
        entries.kernel(name, ("decoder", f"{name}.weight"), inputs, outputs)
        if layer.bias is not None:
            entries.raw(f"{name}.bias", ("decoder", f"{name}.bias"), *layer.bias)


_DECODER = {"full_rank": _full_rank, "low_rank": _low_rank}
