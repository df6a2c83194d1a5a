"""Writes tensors as torch.save does, for users of PyTorch; without PyTorch."""

import pathlib
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

_STORAGES = {np.dtype("f4"): "FloatStorage", np.dtype("f2"): "HalfStorage"}


def write_torch_file(
    path: pathlib.Path,
    state: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    dataset: str | None = None,
) -> None:
    """Writes {'state_dict': ..., 'config': ..., 'dataset': ...}, which torch.load reads, with weights_only too.

    Args:
      state: float32 or float16 arrays by name.
      config: numbers, truth values, strings, and tuples of these.
      dataset: what the GHN was trained on, if known; the public code passes over it.
    """
    with zipfile.ZipFile(path, "w") as archive:
        content: dict[str, Any] = {"state_dict": _state(state), "config": _dict(config)}
        if dataset is not None:
            content["dataset"] = dataset
        archive.writestr("ghn/data.pkl", b"\x80\x02" + _dict(content) + b".")
        archive.writestr("ghn/byteorder", "little")
        for key, tensor in enumerate(state.values()):
            with archive.open(f"ghn/data/{key}", "w", force_zip64=True) as member:
                member.write(np.ascontiguousarray(tensor).data.cast("B"))
        archive.writestr("ghn/version", "3\n")


def _state(state: Mapping[str, np.ndarray]) -> bytes:
    """The instructions that make an OrderedDict of tensors."""
    tensors = {name: _tensor(str(key), tensor) for key, (name, tensor) in enumerate(state.items())}
    return b"ccollections\nOrderedDict\n)R" + _items(tensors)


def _tensor(key: str, tensor: np.ndarray) -> bytes:
    """The instructions that make a tensor from the storage `key`."""
    name = f"ctorch\n{_STORAGES[tensor.dtype]}\n".encode()
    storage = b"(" + _value("storage") + name + _value(key) + _value("cpu") + _value(tensor.size) + b"tQ"
    strides = tuple(stride // tensor.itemsize for stride in np.ascontiguousarray(tensor).strides)
    arguments = b"(" + storage + _value(0) + _value(tensor.shape) + _value(strides)
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n"
        + arguments
        + _value(False)
        + b"ccollections\nOrderedDict\n)RtR"
    )


def _dict(items: Mapping[str, Any]) -> bytes:
    return b"}" + _items(items)


def _items(items: Mapping[str, Any]) -> bytes:
    """The instructions that add to a dict; values may be instructions themselves."""
    pairs = (_value(k) + (v if isinstance(v, bytes) else _value(v)) for k, v in items.items())
    return b"(" + b"".join(pairs) + b"u"


def _value(value: Any) -> bytes:
    """The instructions that make a simple value."""
    match value:
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"\x8a\x08" + struct.pack("<q", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(_value, value)) + b"t"
    raise TypeError(f"`value` (={value!r}) cannot be pickled here")
