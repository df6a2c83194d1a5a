"""GHNs in files: this project's, and those of the public code in all formats in circulation.

What a file is, is told by what is in it. Ours is safetensors, under the public names, whose header holds the
configuration and how the weights were trained; the public code's are PyTorch files, read without running anything of
them (`ghn_jax.pretrained.pickles`).
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy

from ghn_jax.models.config import GHNConfig
from ghn_jax.pretrained.public_config import current_name, infer
from ghn_jax.pretrained.public_names import from_state_dict, to_state_dict
from ghn_jax.pretrained.stored import DamagedFile, StoredTensor, read_safetensors
from ghn_jax.pretrained.torch_files import is_torch_file, read_torch_file
from ghn_jax.pretrained.torch_writer import write_torch_file
from ghn_jax.runtime import outputs

_FORMAT = "ghn_jax-1"


class TrainedGHN(NamedTuple):
    """A GHN with weights.

    Attributes:
      config: what it is made of.
      params: its weights, as `ghn_jax.models.ghn.GHN` takes them.
      info: how it was trained (command, dataset, steps, accuracy), or where it comes from (origin, file, classes,
        size).
    """

    config: GHNConfig
    params: dict[str, Any]
    info: dict[str, Any]


class StoredGHN(NamedTuple):
    """A GHN in a file, its tensors not read yet; other attributes as in TrainedGHN.

    Attributes:
      state: its tensors by public name.
    """

    config: GHNConfig
    state: Mapping[str, StoredTensor]
    info: dict[str, Any]


def open_ghn(path: pathlib.Path) -> StoredGHN:
    """Finds the configuration and the tensors of a file.

    Raises ValueError for one that is damaged, is no GHN, or asks for more than tensors.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
        if is_torch_file(start):
            return _from_content(path, *read_torch_file(path))
        tensors, metadata = read_safetensors(path)
        if metadata.get("format") == _FORMAT:
            config, info = (json.loads(metadata.get(name, "null")) for name in ("config", "info"))
            if not isinstance(config, dict) or not isinstance(info, dict):
                raise DamagedFile("its configuration and history are missing or no objects")
            return StoredGHN(config_from_dict(config), tensors, info)
        return _from_content(path, tensors, "safetensors")
    except (DamagedFile, OSError) as error:
        raise ValueError(
            f"`ckpt` (={str(path)!r}) is damaged or no file of a GHN ({error}): get it again"
        ) from error
    except ValueError as error:
        raise ValueError(f"`ckpt` (={str(path)!r}): {error}") from error


def _from_content(path: pathlib.Path, content: Any, file_format: str) -> StoredGHN:
    """A GHN of the public code: its weights alone, or a checkpoint with them."""
    checkpoint = (
        content if isinstance(content, Mapping) and "state_dict" in content else {"state_dict": content}
    )
    state = checkpoint["state_dict"]
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"it holds no weights of a GHN, but {type(state).__name__}")
    for name, tensor in state.items():
        if not isinstance(tensor, StoredTensor):
            raise ValueError(f"it holds no weights of a GHN: {name!r} is {type(tensor).__name__}, no tensor")
    named = {current_name(name): tensor for name, tensor in state.items()}
    config = infer({name: tensor.shape for name, tensor in named.items()}, checkpoint.get("config"))
    kind = "weights" if checkpoint["state_dict"] is content else "a checkpoint"
    info = {
        "origin": f"{kind} of the public code",
        "file": path.name,
        "format": file_format,
        "classes": config.num_classes,
        "size": sum(int(np.prod(tensor.shape)) for tensor in named.values()),
        "dataset": checkpoint.get("dataset")  # of what this project wrote
        or {10: "cifar10", 1000: "imagenet"}.get(config.num_classes, "unknown"),
    }
    epoch = checkpoint.get("epoch")
    return StoredGHN(config, named, info | ({} if epoch is None else {"epoch": epoch}))


def read_ghn(path: pathlib.Path) -> TrainedGHN:
    """Reads a file; tensors go from there straight into their place, one at a time.

    Raises ValueError as `open_ghn` does, and for tensors that are missing, unknown or of another shape.
    """
    config, state, info = open_ghn(path)
    try:
        params = from_state_dict(config, state)
    except ValueError as error:
        raise ValueError(f"`ckpt` (={str(path)!r}): {error}") from error
    return TrainedGHN(config, jax.device_put(params), info)  # once, not at each prediction


def save(path: pathlib.Path, ghn: TrainedGHN, dtype: type[np.floating] = np.float32) -> None:
    """Writes a GHN, atomically: as a safetensors file, or as one of PyTorch if the name ends in .pt.

    Args:
      dtype: of the weights in the file.
    """
    state = {name: np.asarray(t, dtype) for name, t in to_state_dict(ghn.config, ghn.params).items()}
    with outputs.replacing(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode  # by the umask, which safetensors does not ask
        if path.suffix == ".pt":
            write_torch_file(partial, state, public_config(ghn.config), ghn.info.get("dataset"))
        else:
            metadata = {
                "format": _FORMAT,
                "config": json.dumps(dataclasses.asdict(ghn.config)),
                "info": json.dumps(ghn.info),
            }
            safetensors.numpy.save_file(state, partial, metadata)
        partial.chmod(mode)


def public_config(config: GHNConfig) -> dict[str, Any]:
    """What the public code makes a GHN from."""
    public = {
        "max_shape": (config.channels, config.channels, config.max_kernel, config.max_kernel),
        "num_classes": config.num_classes,
        "hypernet": "mlp" if config.hypernet == "mlp" else "gatedgnn",
        "decoder": "conv",
        "weight_norm": config.normalize,
        "ve": config.virtual_edges,
        "layernorm": config.layer_norm,
        "hid": config.hidden,
    }
    return public | (
        {"layers": config.layers, "heads": config.heads} if config.hypernet == "graphormer" else {}
    )


def config_from_dict(data: dict[str, Any]) -> GHNConfig:
    """A configuration from its JSON form; ValueError if it is none."""
    try:
        return GHNConfig(**data)
    except TypeError as error:
        raise ValueError(f"`config` (={data}) is no GHN configuration: {error}") from error
