"""Tensors that stay in their file until they are read, and safetensors files of them.

The weights of a large GHN take gigabytes: they are read in parts, straight into their place.
"""

import json
import math
import pathlib
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
}
_LARGEST_HEADER = 100_000_000  # bytes, as in the format


class DamagedFile(ValueError):
    """A file is cut short, garbled, or not of the format that it seems to be of."""


class StoredTensor(NamedTuple):
    """A tensor in a file, its last axis contiguous; `tensor[start:stop]` reads these entries of its first axis.

    Attributes:
      path: the file.
      offset: of its first byte.
      dtype: of its entries there.
      shape: of the tensor.
    """

    path: pathlib.Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        """Offset of the byte after its last."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, part: slice) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        start, stop, _ = part.indices(self.shape[0])
        row = math.prod(self.shape[1:])
        offset = self.offset + start * row * self.dtype.itemsize
        values = np.fromfile(self.path, self.dtype, (stop - start) * row, offset=offset)
        if len(values) != (stop - start) * row:
            raise DamagedFile("it ends early")
        return values.reshape(stop - start, *self.shape[1:])


def read_safetensors(path: pathlib.Path) -> tuple[dict[str, StoredTensor], Mapping[str, str]]:
    """The tensors of a safetensors file by name, and its metadata.

    Raises DamagedFile.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _LARGEST_HEADER
        if length > min(_LARGEST_HEADER, size - 8):
            raise DamagedFile("its header is longer than the file")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            tensors = {
                name: StoredTensor(
                    path,
                    8 + length + entry["data_offsets"][0],
                    _DTYPES[entry["dtype"]],
                    tuple(entry["shape"]),
                )
                for name, entry in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedFile(f"its header is garbled: {error}") from error
    end = max((tensor.end for tensor in tensors.values()), default=8 + length)
    if end != size:
        raise DamagedFile(f"its tensors end at byte {end}, and the file has {size}")
    return tensors, metadata
