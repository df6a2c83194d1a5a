"""Where the parameters of an architecture lie in its flat vector.

All parameters of a network are one float32 vector, so that whatever predicts them and whatever runs the network
meet at one narrow interface. A tensor lies there in the layout in which the blocks use it (HWIO), its
channels padded to one of a few widths: networks of 80, 96 and 112 channels then share the compiled blocks of 128.

Layouts are made of rows of 8 consecutive output channels. A GHN decodes at most 64 x 64 channels of a tensor and
repeats them, so a layout is also the recipe of that "fit": for each row, which decoded row it repeats.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int

from ghn_jax.graphs import Graph

ROW = 8
"""Output channels that are laid out, and decoded, together."""

PADDING = -1


class Axis(NamedTuple):
    """A channel axis: `count` segments of `width` channels, each padded with zeros to `padded`."""

    count: int
    width: int
    padded: int

    @property
    def size(self) -> int:
        """Number of true channels."""
        return self.count * self.width

    @property
    def padded_size(self) -> int:
        """Number of channels with padding."""
        return self.count * self.padded


class Layout(NamedTuple):
    """How one tensor lies in the flat vector: as (*kernel, inputs, outputs), channels padded.

    Attributes:
      kernel: height and width; (1, 1) for linear layers and vectors.
      inputs: the input channels; None for depthwise kernels, vectors and positional encodings.
      outputs: the output channels.
      flattened: the tensor is linear on a flattened feature map of size `kernel`, in PyTorch's order (input
        feature = channel * height * width + position).
    """

    kernel: tuple[int, int]
    inputs: Axis | None
    outputs: Axis
    flattened: bool = False

    @property
    def size(self) -> int:
        """Length in the flat vector."""
        rows = self.kernel[0] * self.kernel[1] * self.outputs.padded_size
        return rows * (self.inputs.padded_size if self.inputs else 1)


class Parameter(NamedTuple):
    """A tensor of a network.

    Attributes:
      name: the public, PyTorch-style name.
      shape: in PyTorch's layout: OIHW, (out, in), (out,), or (1, C, H, W) for a positional encoding.
      node: index of the graph node that owns it.
      layout: its place's form.
      offset: its place in the flat vector; a multiple of ROW.
    """

    name: str
    shape: tuple[int, ...]
    node: int
    layout: Layout
    offset: int


class LaidOut(Protocol):
    """A network as what predicts its parameters sees it: its graph, and where its tensors lie."""

    @property
    def graph(self) -> Graph:
        """Its computational graph."""
        ...

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Its tensors."""
        ...

    @property
    def used_size(self) -> int:
        """Places of the flat vector up to the end of the last parameter."""
        ...

    @property
    def flat_size(self) -> int:
        """Least length of the flat vector."""
        ...


@functools.lru_cache(maxsize=4096)
def channel_indices(axis: Axis) -> Int[np.ndarray, " padded"]:
    """The true channel at each place of a padded axis, PADDING where there is none."""
    place = np.arange(axis.padded)
    within = np.where(place < axis.width, place, PADDING)
    indices = np.arange(axis.count)[:, None] * axis.width + within
    return np.where(within == PADDING, PADDING, indices).reshape(-1).astype(np.int32)


@functools.lru_cache(maxsize=4096)
def element_indices(layout: Layout, shape: tuple[int, ...]) -> Int[np.ndarray, " place"]:
    """For each place of the layout the index into the flattened PyTorch tensor, PADDING where there is none."""
    positions = layout.kernel[0] * layout.kernel[1]
    position = np.arange(positions)[:, None, None]
    out = channel_indices(layout.outputs)[None, None, :]
    if layout.inputs is None:  # (out, 1, kh, kw), (out,) or (1, out, h, w)
        index = out * positions + position
        valid = (out != PADDING) & (position >= 0)
    else:  # (out, in, kh, kw) or (out, in * positions): the same order of elements
        inside = channel_indices(layout.inputs)[None, :, None]
        index = (out * layout.inputs.size + inside) * positions + position
        valid = (out != PADDING) & (inside != PADDING) & (position >= 0)
    assert index.max() < np.prod(shape), (layout, shape)
    return np.where(valid, index, PADDING).reshape(-1)


def flatten(
    parameters: tuple[Parameter, ...], tensors: Mapping[str, np.ndarray], size: int
) -> Float[np.ndarray, " size"]:
    """The flat vector of a network, from tensors in PyTorch's layout by name.

    Raises ValueError if a tensor is missing or of another shape.
    """
    flat = np.zeros(size, np.float32)
    for parameter in parameters:
        tensor = tensors.get(parameter.name)
        if tensor is None or tuple(tensor.shape) != parameter.shape:
            got = "nothing" if tensor is None else f"shape {tuple(tensor.shape)}"
            raise ValueError(f"`tensors[{parameter.name!r}]` must have shape {parameter.shape}, got {got}")
        indices = element_indices(parameter.layout, parameter.shape)
        values = np.asarray(tensor, np.float32).reshape(-1)[indices]
        flat[parameter.offset : parameter.offset + len(indices)] = np.where(indices == PADDING, 0.0, values)
    return flat


def unflatten(parameters: tuple[Parameter, ...], flat: Float[np.ndarray, " size"]) -> dict[str, np.ndarray]:
    """The tensors of a network in PyTorch's layout, by name: the inverse of `flatten`."""
    flat, tensors = np.asarray(flat).reshape(-1), {}
    for parameter in parameters:
        indices = element_indices(parameter.layout, parameter.shape)
        tensor = np.empty(int(np.prod(parameter.shape)), np.float32)
        valid = indices != PADDING
        tensor[indices[valid]] = flat[parameter.offset : parameter.offset + len(indices)][valid]
        tensors[parameter.name] = tensor.reshape(parameter.shape)
    return tensors
