"""Trained GHNs: bundled ones by name, others by path.

Weights are kept as safetensors, which load without executing code, under the public PyTorch names; the header
holds the configuration and how the weights were trained.
"""

import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from ghn_jax.models.config import GHNConfig
from ghn_jax.pretrained.public_names import from_state_dict, to_state_dict
from ghn_jax.runtime.errors import unknown_name

_HERE = pathlib.Path(__file__).parent
_FORMAT = "ghn_jax-1"

DEFAULT = "ghn2-digits"
"""The GHN that is used unless another is named."""


class TrainedGHN(NamedTuple):
    """A GHN with weights.

    Attributes:
      config: what it is made of.
      params: its weights, as `ghn_jax.models.ghn.GHN` takes them.
      info: how it was trained: command, dataset, steps, accuracy.
    """

    config: GHNConfig
    params: dict[str, Any]
    info: dict[str, Any]


def bundled() -> list[str]:
    """Names of the GHNs that come with the package."""
    return sorted(path.stem for path in _HERE.glob("*.safetensors"))


def load(source: str | pathlib.Path) -> TrainedGHN:
    """Loads a GHN: a bundled name, a .safetensors file, or the work directory of a training run (its best checkpoint).

    Raises ValueError for a name that is none of these, and for a file that is damaged or no GHN.
    """
    path = pathlib.Path(source)
    if path.is_dir():
        from ghn_jax.pretrained.runs import load_weights  # orbax takes a second to import

        params, meta = load_weights(path)
        return TrainedGHN(config_from_dict(meta["config"]), params, meta["info"])
    if not path.exists() and path.suffix == "" and path.name == str(source):
        if str(source) not in bundled():
            raise unknown_name("ckpt", source, [*bundled(), "the path of a run or a .safetensors file"])
        path = _HERE / f"{source}.safetensors"
    if not path.exists():
        raise ValueError(
            f"`ckpt` (={str(source)!r}) does not exist: give a bundled name ({', '.join(bundled())}) or a path"
        )
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"`ckpt` (={str(path)!r}) is damaged or no safetensors file ({error}): get it again"
        ) from error
    if header.get("format") != _FORMAT:
        raise ValueError(
            f"`ckpt` (={str(path)!r}) has no GHN configuration: save it with `ghn_jax.pretrained.save`"
        )
    config = config_from_dict(json.loads(header["config"]))
    return TrainedGHN(config, from_state_dict(config, state), json.loads(header["info"]))


def save(path: pathlib.Path, ghn: TrainedGHN) -> None:
    """Writes a GHN as a safetensors file, atomically."""
    metadata = {
        "format": _FORMAT,
        "config": json.dumps(dataclasses.asdict(ghn.config)),
        "info": json.dumps(ghn.info),
    }
    state = {name: np.asarray(t, np.float32) for name, t in to_state_dict(ghn.config, ghn.params).items()}
    partial = path.with_name(path.name + ".part")
    safetensors.numpy.save_file(state, partial, metadata)
    partial.replace(path)


def config_from_dict(data: dict[str, Any]) -> GHNConfig:
    """A configuration from its JSON form; ValueError if it is none."""
    try:
        return GHNConfig(**data)
    except TypeError as error:
        raise ValueError(f"`config` (={data}) is no GHN configuration: {error}") from error
