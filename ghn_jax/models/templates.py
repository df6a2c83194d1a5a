"""Plans, on the host, how a network's parameters are decoded and laid out.

A GHN decodes from each node embedding a *template*: a tensor of at most as many channels as its configuration says.
Templates of one form are decoded in chunks, into a bank of rows; the flat parameter vector then repeats rows of the
bank, which is the published "fit" (slice, or tile along the channels and cut). A plan is what both need, as arrays of
a few sizes.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021, Section 3.1 and Appendix B.1.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ghn_jax.executor.layouts import PADDING, ROW, Axis, LaidOut, Layout, Parameter, channel_indices
from ghn_jax.graphs import PRIMITIVES, Shape, next_size
from ghn_jax.models.config import GHNConfig

ROWS_PER_STEP = 8192
"""Rows of the flat vector that are gathered at a time."""

_MIN_ROWS = 1 << 17
_LARGE = 1 << 19  # rows, 16 MB: to fill and move twice as many costs more than to compile for another size
_MIN_NODES = 1 << 10
_MANY_CHANNELS = 1 << 9  # more than most networks have: they decode a part
_LARGEST_CHUNK = 1 << 23  # elements, 32 MB


class Template(NamedTuple):
    """The form of a decoded tensor: (height, width, inputs, outputs).

    Attributes:
      role: which decoder makes it. 'vector' holds a weight-like and a bias-like vector (inputs = 2).
      outputs: output channels, a multiple of ROW.
    """

    role: Literal["conv", "pos_enc", "vector", "class_weight", "class_bias"]
    height: int
    width: int
    inputs: int
    outputs: int

    @property
    def rows(self) -> int:
        """Rows of one tensor in the bank."""
        return self.height * self.width * self.inputs * self.outputs // ROW

    @property
    def chunk(self) -> int:
        """Tensors decoded at a time: enough for a good matrix product, few enough to waste little."""
        if self.role in ("class_weight", "class_bias", "pos_enc"):
            return 1
        if self.role == "vector":
            return 64
        positions = self.height * self.width
        return max(1, min(32 // positions, _LARGEST_CHUNK // (positions * self.inputs * self.outputs)))


@functools.cache
def deepnets_templates(config: GHNConfig, image_size: int) -> tuple[Template, ...]:
    """The forms that the architectures of DeepNets-1M, and ResNet-50, need."""
    full = config.channels
    kernels = ((1, 1), (3, 3), (5, 5), (7, 7), (1, 7), (7, 1))
    dense = [(*kernel, width, width) for kernel in kernels for width in _widths(kernel, config)]
    patch = math.ceil(image_size / 14)  # see ghn_jax.deepnets.image_sizes
    patches, patch = min(math.ceil(image_size / patch), config.max_kernel), min(patch, config.max_kernel)
    stems = [(k, k, 4, full) for k in dict.fromkeys((3, 5, 7, patch))]
    depthwise = [(k, k, 1, full) for k in (3, 5)]
    classes = math.ceil(config.num_classes / ROW) * ROW
    return (
        *(Template("conv", *form) for form in (*dense, *stems, *depthwise)),
        Template("pos_enc", patches, patches, 1, full),
        Template("vector", 1, 1, 2, full),
        Template("class_weight", 1, 1, full, classes),
        Template("class_bias", 1, 1, 1, classes),
    )


class Plan(NamedTuple):
    """How to decode one network, as arrays; a pytree.

    Attributes:
      nodes: node whose embedding is decoded at each place; the places of one template follow each other, in
        whole chunks (what pads the last one decodes node 0, to no use).
      scales: factor on the decoded tensor.
      starts: first place of each template, and the end.
      row_starts: row of the bank at which each template's tensors start.
      rows: row of the bank that each row of the flat vector repeats; the last row of the bank is zero.
      num_rows: rows of the flat vector in use.
      tensors: first row of each tensor in the flat vector; what pads it is beyond the end.
    """

    nodes: Int[np.ndarray, " place"]
    scales: Float[np.ndarray, " place"]
    starts: Int[np.ndarray, " template+1"]
    row_starts: Int[np.ndarray, " template"]
    rows: Int[np.ndarray, " row"]
    num_rows: Int[np.ndarray, ""]
    tensors: Int[np.ndarray, " tensor"]

    @property
    def flat_size(self) -> int:
        """Length of the flat vector that it makes."""
        return self.rows.shape[-1] * ROW


def empty_plan() -> Plan:
    """A plan that decodes nothing."""
    none = np.zeros(0, np.int32)
    rows = np.zeros(ROWS_PER_STEP, np.int32)
    return Plan(none, np.zeros(0, np.float32), np.zeros(1, np.int32), none, rows, np.array(0, np.int32), none)


class PlanSize(NamedTuple):
    """Array sizes of a plan: places in `nodes`, and rows of both the flat vector and the bank."""

    places: int
    rows: int

    @property
    def tensors(self) -> int:
        """Size of `tensors`: a place has two at most, those of a norm layer."""
        return 2 * self.places


def plan_size(network: LaidOut, config: GHNConfig, templates: Sequence[Template]) -> PlanSize:
    """The smallest of a few sizes that holds the network: a factor of 4 apart, large ones 2."""
    places, bank = _usage(_assign(network, config, templates), templates)
    rows = _MIN_ROWS
    while rows < max(bank + 1, -(-network.flat_size // ROW)):
        rows *= 4 if rows < _LARGE else 2
    return PlanSize(next_size(places, _MIN_NODES), rows)


def make_plan(
    network: LaidOut, config: GHNConfig, templates: Sequence[Template], size: PlanSize | None = None
) -> Plan:
    """Plans the decoding of a network.

    Args:
      templates: the forms to decode; an assertion fails if the network needs another one.
      size: array sizes, by default those of `plan_size`.
    """
    owned = _assign(network, config, templates)
    size = size or plan_size(network, config, templates)
    nodes, scales = np.zeros(size.places, np.int32), np.zeros(size.places, np.float32)
    starts, row_starts = np.zeros(len(templates) + 1, np.int32), np.zeros(len(templates), np.int32)
    rows = np.full(size.rows, size.rows - 1, np.int32)
    place = row = 0
    for t, template in enumerate(templates):
        starts[t], row_starts[t] = place, row
        for i, (node, parameters) in enumerate(owned[t].items()):
            nodes[place + i], scales[place + i] = node, fan_in_scale(parameters[0].shape, config)
            for p in parameters:
                relative = fit_rows(p.layout, p.shape, template, p.name.endswith("bias"))
                target = rows[p.offset // ROW : p.offset // ROW + len(relative)]
                np.copyto(target, relative + (row + i * template.rows), where=relative != PADDING)
        chunks = math.ceil(len(owned[t]) / template.chunk)
        place, row = place + chunks * template.chunk, row + chunks * template.chunk * template.rows
    starts[-1] = place
    tensors = np.full(size.tensors, size.rows, np.int32)
    tensors[: len(network.parameters)] = [p.offset // ROW for p in network.parameters]
    num_rows = np.array(network.used_size // ROW, np.int32)
    return Plan(nodes, scales, starts, row_starts, rows, num_rows, tensors)


@functools.lru_cache(maxsize=1024)
def fit_rows(layout: Layout, shape: Shape, template: Template, bias: bool) -> Int[np.ndarray, " row"]:
    """For each row of a layout the row of its template, PADDING for padding: slice or tile, along both channels."""
    height, width = layout.kernel
    y, x = np.divmod(np.arange(height * width), width)
    position = (y % template.height) * template.width + x % template.width
    out = channel_indices(layout.outputs)[::ROW]
    block = np.where(out == PADDING, PADDING, out // ROW % (template.outputs // ROW))
    inside = channel_indices(layout.inputs or Axis(1, 1, 1))
    source = inside[None, :] * np.ones((height * width, 1), np.int32)
    if layout.flattened:  # input feature = channel * positions + position
        source = np.where(
            inside == PADDING, PADDING, source * height * width + np.arange(height * width)[:, None]
        )
        position = np.zeros_like(position)
    if template.role == "vector":
        source = np.full_like(source, int(bias))
    fitted = source % template.inputs
    row = (position[:, None, None] * template.inputs + fitted[:, :, None]) * (template.outputs // ROW) + block
    valid = (source[:, :, None] != PADDING) & (block != PADDING)
    return np.where(valid, row, PADDING).astype(np.int32).reshape(-1)


def _assign(
    network: LaidOut, config: GHNConfig, templates: Sequence[Template]
) -> list[dict[int, tuple[Parameter, ...]]]:
    """For each template the nodes decoded with it, and the parameters that each node owns."""
    class_names = {p.name for p in network.parameters[-2:]}
    owned: list[dict[int, tuple[Parameter, ...]]] = [{} for _ in templates]
    index = {template: t for t, template in enumerate(templates)}
    for parameter in network.parameters:
        primitive = PRIMITIVES[network.graph.primitives[parameter.node]]
        wanted = _template(parameter.shape, primitive, parameter.name in class_names, config)
        nodes = owned[index[wanted]]
        nodes[parameter.node] = (*nodes.get(parameter.node, ()), parameter)
    return owned


@functools.lru_cache(maxsize=65536)
def _template(shape: Shape, primitive: str, is_class: bool, config: GHNConfig) -> Template:
    """The smallest template that covers what a GHN decodes for a tensor."""
    full = config.channels
    classes = math.ceil(config.num_classes / ROW) * ROW
    if len(shape) == 1:
        return Template("class_bias", 1, 1, 1, classes) if is_class else Template("vector", 1, 1, 2, full)
    if is_class:
        return Template("class_weight", 1, 1, full, classes)
    height, width = (min(k, config.max_kernel) for k in (*shape, 1, 1)[2:4])
    if primitive == "pos_enc":
        return Template("pos_enc", height, width, 1, full)
    if len(shape) == 4 and shape[1] <= 4:
        return Template("conv", height, width, 1 if shape[1] == 1 else 4, full)
    wanted = min(max(shape[:2]), full)
    channels = next(size for size in _widths((height, width), config) if size >= wanted)
    return Template("conv", height, width, channels, channels)


def _widths(kernel: tuple[int, int], config: GHNConfig) -> tuple[int, ...]:
    """Channels that templates of a dense kernel have."""
    full = config.channels
    if full > _MANY_CHANNELS:
        return (full // 16, full // 4, full)
    return (full,) if kernel == (1, 1) else (full // 2, full)


def _usage(owned: list[dict[int, tuple[Parameter, ...]]], templates: Sequence[Template]) -> tuple[int, int]:
    """Places and bank rows that the templates take."""
    places = [math.ceil(len(nodes) / t.chunk) * t.chunk for nodes, t in zip(owned, templates, strict=True)]
    return sum(places), sum(n * t.rows for n, t in zip(places, templates, strict=True))


def fan_in_scale(shape: Shape, config: GHNConfig) -> float:
    """The published fan-in normalisation: sqrt(beta / fan_in), where beta makes up for a ReLU that follows."""
    is_pos_enc = (
        len(shape) == 4 and shape[0] == 1 and shape[2] >= 8
    )  # 8 x 8 patches at 16 pixels, 11 x 11 at 32
    if not config.normalize or len(shape) == 1 or is_pos_enc:
        return 1.0
    before_no_relu = len(shape) > 2 and (shape[1] == 1 or shape[2] < shape[3])
    return math.sqrt((1.0 if before_no_relu else 2.0) / math.prod(shape[1:]))
