"""PyTorch's files: those of torch.save, old and new, and joblib's pickles of tensors, told apart by what is inside.

A new file is a zip of a pickle and one member for each storage. An old one is a row of pickles (a magic number, a
version, facts of the machine, the object, the keys of its storages) and then the storages. In joblib's pickles each
storage is an old file of its own.
"""

import math
import mmap
import pathlib
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ghn_jax.pretrained.pickles import RefusedName, Storage, TensorReference, read_pickle
from ghn_jax.pretrained.stored import DamagedFile, StoredTensor

_MAGIC = 0x1950A86A20F9469CFC6C
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a member of a zip; lengths of its name and of what follows
_PIECE = 1 << 20


def is_torch_file(start: bytes) -> bool:
    """Whether a file that begins so may be one."""
    return start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05")


def read_torch_file(path: pathlib.Path) -> tuple[Any, str]:
    """What a file holds, tensors as StoredTensor, and the name of its format.

    Raises DamagedFile, and RefusedName for a file that asks for more than tensors.
    """
    try:
        return _read(path)
    except (DamagedFile, RefusedName):
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RecursionError,
        struct.error,
    ) as error:
        raise DamagedFile(f"it is garbled: {error}") from error


def _read(path: pathlib.Path) -> tuple[Any, str]:
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if data[:2] == b"PK":
        return _read_zip(path, data), "torch.save"
    first, end = read_pickle(data, 0, lambda part: _nested_storage(data, part))
    if first == _MAGIC:
        return _read_old(path, data, end), "torch.save, old"
    return _with_tensors(first, _Places(path, data)), "joblib"


def _read_zip(path: pathlib.Path, data: memoryview) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
            if "data.pkl" not in members:
                raise DamagedFile("it is a zip, but holds no data.pkl")
            content, _ = read_pickle(memoryview(archive.read(members["data.pkl"])), 0)
            if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
                raise DamagedFile("its numbers are big-endian")

            def place(key: str) -> int:
                member = members.get(f"data/{key}")
                if member is None or member.compress_type != zipfile.ZIP_STORED:
                    raise DamagedFile(f"it lacks the storage {key}")
                with archive.open(member) as stored:  # compares checksums
                    while stored.read(_PIECE):
                        pass
                name, extra = _LOCAL_HEADER.unpack_from(data, member.header_offset)
                return member.header_offset + _LOCAL_HEADER.size + name + extra

            return _with_tensors(content, _Places(path, data, place))
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise DamagedFile(str(error)) from error


def _read_old(path: pathlib.Path, data: memoryview, place: int) -> Any:
    content, places, _ = _old_parts(data, place)
    return _with_tensors(content, _Places(path, data, places.__getitem__))


def _old_parts(data: memoryview, place: int) -> tuple[Any, dict[str, int], int]:
    """The object of an old file after its magic number, where the entries of each storage begin, and its end."""
    _, place = read_pickle(data, place)
    machine, place = read_pickle(data, place)
    if not machine.get("little_endian", True):
        raise DamagedFile("its numbers are big-endian")
    content, place = read_pickle(data, place)
    keys, place = read_pickle(data, place)
    sizes = {storage.key: storage for storage in _storages(content)}
    places = {}
    for key in keys:
        dtype = sizes[key].dtype
        if dtype is None:
            raise DamagedFile(f"its storage {key} is of a type that is not read")
        (count,) = struct.unpack_from("<Q", data, place)
        places[key] = place + 8
        place += 8 + count * dtype.itemsize
    if place > len(data):
        raise DamagedFile("it ends early")
    return content, places, place


def _nested_storage(data: memoryview, part: memoryview) -> Storage:
    """A storage that is an old file inside of another file; its key is where its entries begin in that."""
    magic, place = read_pickle(part, 0)
    if magic != _MAGIC:
        raise DamagedFile("a storage in it is of an unknown format")
    storage, places, _ = _old_parts(part, place)
    if not isinstance(storage, Storage):
        raise DamagedFile("a storage in it is something else")
    return storage._replace(key=str(_address(part) - _address(data) + places[storage.key]))


def _address(view: memoryview) -> int:
    return np.frombuffer(view, np.uint8).ctypes.data


def _storages(content: Any) -> list[Storage]:
    """All storages that some content refers to."""
    if isinstance(content, Storage):
        return [content]
    if isinstance(content, TensorReference):
        return [content.storage]
    if isinstance(content, Mapping):
        return [storage for value in content.values() for storage in _storages(value)]
    if isinstance(content, list | tuple):
        return [storage for value in content for storage in _storages(value)]
    return []


class _Places:
    """Where storages lie in a file."""

    def __init__(self, path: pathlib.Path, data: memoryview, find: Callable[[str], int] = int):
        self._path, self._size, self._find = path, len(data), find
        self._known: dict[str, int] = {}

    def tensor(self, reference: TensorReference) -> StoredTensor:
        """Raises DamagedFile for one that does not lie in the file in one piece."""
        storage, offset, shape, strides = reference
        contiguous = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        if storage.dtype is None or any(
            stride != wanted
            for size, stride, wanted in zip(shape, strides, contiguous, strict=True)
            if size > 1
        ):
            raise DamagedFile(
                f"a tensor of shape {shape} in it is not stored row by row, or in an unknown type"
            )
        if offset < 0 or min(shape, default=1) < 0 or offset + math.prod(shape) > storage.size:
            raise DamagedFile(f"a tensor of shape {shape} in it is larger than its storage")
        if storage.key not in self._known:
            self._known[storage.key] = self._find(storage.key)
        start = self._known[storage.key] + offset * storage.dtype.itemsize
        tensor = StoredTensor(self._path, start, storage.dtype, shape)
        if tensor.end > self._size:
            raise DamagedFile("it ends early")
        return tensor


def _with_tensors(content: Any, places: _Places) -> Any:
    """Some content, with tensors in place of the references to them; those of an optimiser are left out."""
    if isinstance(content, TensorReference):
        return places.tensor(content)
    if isinstance(content, Mapping):
        left_out = ("optimizer", "optimzer")  # sic
        return {key: _with_tensors(value, places) for key, value in content.items() if key not in left_out}
    return content
