"""Converts between public PyTorch tensors by name and the parameter trees of these networks.

A module of `ghn_jax.networks` bears its public name relative to its parent, numbers included: the path
("cells.3", "_ops.1", "op.2", "scale") holds the tensor "cells.3._ops.1.op.2.weight". Only layouts differ:
Flax has HWIO kernels and (in, out) matrices where PyTorch has OIHW and (out, in).
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util


class _Form(NamedTuple):
    """How Flax keeps one kind of tensor."""

    leaf: str
    from_torch: tuple[int, ...]
    to_torch: tuple[int, ...]


# By number of axes. A depthwise kernel is (C, 1, h, w) there and (h, w, 1, C) here, as any other.
_WEIGHTS = {
    4: _Form("kernel", (2, 3, 1, 0), (3, 2, 0, 1)),
    2: _Form("kernel", (1, 0), (1, 0)),
    1: _Form("scale", (0,), (0,)),
}


def to_params(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameters of a network, `module.apply({"params": to_params(tensors)}, images)`.

    Args:
      tensors: weights and biases in PyTorch's layout, by public name.

    Raises ValueError for a tensor that is neither a weight nor a bias.
    """
    leaves = {}
    for name, tensor in tensors.items():
        parent, _, kind = name.rpartition(".")
        form = _WEIGHTS.get(np.ndim(tensor))
        if not parent or kind not in ("weight", "bias") or form is None:
            raise ValueError(
                f"`tensors[{name!r}]` of shape {np.shape(tensor)} is no parameter of a network: names end in "
                "'.weight' or '.bias', and tensors have 1, 2 or 4 axes"
            )
        path = tuple(re.split(r"\.(?!\d)", parent))  # a number belongs to the name before it
        if parent == "pos_enc":
            leaves[*path, "embedding"] = np.asarray(tensor)[0].transpose(1, 2, 0)
        elif kind == "bias":
            leaves[*path, "bias"] = np.asarray(tensor)
        else:
            leaves[*path, form.leaf] = np.asarray(tensor).transpose(form.from_torch)
    return traverse_util.unflatten_dict(leaves)


def from_params(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of a network in PyTorch's layout, by public name: the inverse of `to_params`."""
    tensors = {}
    for (*path, leaf), value in traverse_util.flatten_dict(dict(params)).items():
        array, parent = np.asarray(value), ".".join(path)
        if leaf == "embedding":
            tensors[f"{parent}.weight"] = array.transpose(2, 0, 1)[None]
        elif leaf == "bias":
            tensors[f"{parent}.bias"] = array
        else:
            tensors[f"{parent}.weight"] = array.transpose(_WEIGHTS[array.ndim].to_torch)
    return tensors
