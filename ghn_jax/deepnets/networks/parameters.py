"""Converts between public PyTorch tensors by name and the parameter trees of these networks.

A module of `ghn_jax.deepnets.networks` bears its public name relative to its parent, numbers included: the path
("cells.3", "_ops.1", "op.2", "scale") holds the tensor "cells.3._ops.1.op.2.weight". Only layouts differ:
Flax has HWIO kernels and (in, out) matrices where PyTorch has OIHW and (out, in).
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util
from jaxtyping import Array


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

# Those with a name of their own.
_NAMED = {
    "bias": _Form("bias", (0,), (0,)),
    "class_token": _Form("class_token", (0, 1, 2), (0, 1, 2)),
    "pos_embedding": _Form("pos_embedding", (0, 1, 2), (0, 1, 2)),
    "relative_position_bias_table": _Form("relative_position_bias_table", (0, 1), (0, 1)),
    "layer_scale": _Form("layer_scale", (1, 2, 0), (2, 0, 1)),
}


def to_params(tensors: Mapping[str, np.ndarray | Array]) -> dict[str, Any]:
    """The parameters of a network, `module.apply({"params": to_params(tensors)}, images)`.

    Args:
      tensors: all parameters in PyTorch's layout, by public name; of NumPy or JAX, traced ones too.

    Raises ValueError for a tensor that is no parameter, such as a running mean.
    """
    leaves = {}
    for name, tensor in tensors.items():
        # PyTorch's attention calls the parts of its linear layer "in_proj" by names of their own.
        parent, _, kind = name.replace(".in_proj_", ".in_proj.").rpartition(".")
        form = _WEIGHTS.get(np.ndim(tensor)) if kind == "weight" else _NAMED.get(kind)
        if form is None or np.ndim(tensor) != len(form.from_torch):
            raise ValueError(
                f"`tensors[{name!r}]` of shape {np.shape(tensor)} is no parameter of a network: weights have 1, 2 or "
                f"4 axes, biases 1, and other names end in one of {', '.join(_NAMED)}; leave it out"
            )
        path = re.split(r"\.(?!\d)", parent) if parent else ()  # a number belongs to the name before it
        if parent == "pos_enc":
            leaves[*path, "embedding"] = tensor[0].transpose(1, 2, 0)
        else:
            leaves[*path, form.leaf] = tensor.transpose(form.from_torch)
    return traverse_util.unflatten_dict(leaves)


def from_params(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of a network in PyTorch's layout, by public name: the inverse of `to_params`."""
    tensors = {}
    for (*path, leaf), value in traverse_util.flatten_dict(dict(params)).items():
        array = np.asarray(value)
        if leaf == "embedding":
            kind, array = "weight", array.transpose(2, 0, 1)[None]
        elif leaf in _NAMED:
            kind, array = leaf, array.transpose(_NAMED[leaf].to_torch)
        else:
            kind, array = "weight", array.transpose(_WEIGHTS[array.ndim].to_torch)
        tensors[".".join([*path, kind]).replace(".in_proj.", ".in_proj_")] = array
    return tensors


def from_batch_stats(batch_stats: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The buffers of a network's batch norms as PyTorch has them, by public name: its loading asks for all of them."""
    tensors = {}
    for (*path, leaf), value in traverse_util.flatten_dict(dict(batch_stats)).items():
        tensors[".".join([*path, f"running_{leaf}"])] = np.asarray(value)
        tensors[".".join([*path, "num_batches_tracked"])] = np.zeros((), np.int64)
    return tensors
