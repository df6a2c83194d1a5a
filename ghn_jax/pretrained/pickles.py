"""Reads pickles of tensors without running anything of them.

A pickle is a program for a stack machine, and Python's own machine lets it call any function. This one knows the
instructions that containers, numbers and tensors are made of, and a handful of names, each of which has its meaning
here; whatever else a file asks for is refused by name. Bytes are handed on as views of the file, tensors as references
to where their entries lie, so that reading a pickle reads none of the weights.
"""

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ghn_jax.pretrained.stored import DamagedFile


class RefusedName(ValueError):
    """A pickle asks for something that no tensor needs."""


class Storage(NamedTuple):
    """Consecutive entries of a tensor's memory.

    Attributes:
      key: by which its file knows it.
      dtype: of its entries; None where it has no equal here.
    """

    key: str
    dtype: np.dtype | None
    size: int


class TensorReference(NamedTuple):
    """A tensor: entries of a storage; offset and strides count entries."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Named(NamedTuple):
    """A name that a pickle mentions, "module name"."""

    name: str


_STORAGES = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
    "torch ByteStorage": np.dtype("u1"),
    "torch BoolStorage": np.dtype("?"),
    "torch BFloat16Storage": None,
}
_TENSOR = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor")
_PARAMETER = "torch._utils _rebuild_parameter"
NESTED = "torch.storage _load_from_bytes"
_DICTS = ("collections OrderedDict", "argparse Namespace")
_KNOWN = {*_STORAGES, *_TENSOR, _PARAMETER, NESTED, *_DICTS, "torch Size"}


def read_pickle(
    data: memoryview, start: int, nested: Callable[[memoryview], Storage] | None = None
) -> tuple[Any, int]:
    """The object of the pickle that begins at a byte, and the byte after its end.

    Args:
      nested: reads a storage that is a file of torch.save in itself, from a view of it.

    Raises RefusedName, and DamagedFile or one of Python's own errors for a garbled pickle.
    """
    machine = _Machine(data, start, nested)
    return machine.run(), machine.place


class _Machine:
    """The stack machine of pickles, as far as it takes to read tensors."""

    def __init__(self, data: memoryview, place: int, nested: Callable[[memoryview], Storage] | None):
        self.place = place
        self._data, self._nested = data, nested
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            code = self._data[self.place]
            self.place += 1
            if code == ord("."):
                return self._stack.pop()
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                raise DamagedFile(f"it has an instruction, {code:#x}, that no tensor needs")
            instruction(self)

    # -- reading ------------------------------------------------------------------------------------------------

    def number(self, form: str) -> Any:
        """The number that comes next, in the form of `struct`."""
        (value,) = struct.unpack_from("<" + form, self._data, self.place)
        self.place += struct.calcsize("<" + form)
        return value

    def view(self, length: int) -> memoryview:
        """The bytes that come next."""
        if self.place + length > len(self._data):
            raise DamagedFile("it ends early")
        self.place += length
        return self._data[self.place - length : self.place]

    def text(self, length: int) -> str:
        return str(self.view(length), "utf-8")

    def line(self) -> str:
        end = self.place
        while self._data[end] != ord("\n"):
            end += 1
        text = self.text(end - self.place)
        self.place += 1
        return text

    # -- the stack ------------------------------------------------------------------------------------------------

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        return self._stack.pop()

    def mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def pop_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def store(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    def memoize(self) -> None:
        self.store(len(self._memo))

    def recall(self, place: int) -> None:
        self.push(self._memo[place])

    def extend(self, items: list[Any]) -> None:
        self._stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        self._stack[-1].update(zip(items[::2], items[1::2], strict=True))

    # -- names --------------------------------------------------------------------------------------------------

    def name(self, module: str, name: str) -> None:
        full = f"{module} {name}"
        if full not in _KNOWN:
            raise RefusedName(
                f"it asks for {module}.{name}, which no tensor needs: it is refused, nothing of it ran"
            )
        self.push(Named(full))

    def call(self) -> None:
        """What a known name makes of its arguments."""
        arguments, named = self.pop(), self.pop()
        if named.name in _DICTS:
            self.push(dict(*arguments))
        elif named.name in _TENSOR:
            storage, offset, shape, strides = arguments[:4]
            self.push(TensorReference(storage, offset, tuple(shape), tuple(strides)))
        elif named.name == _PARAMETER:
            self.push(arguments[0])
        elif named.name == NESTED and self._nested:
            self.push(self._nested(arguments[0]))
        elif named.name == "torch Size":
            self.push(tuple(arguments[0]))
        else:
            raise DamagedFile(f"it calls {named.name.replace(' ', '.')}")

    def build(self) -> None:
        """Attributes: those of a namespace are its content, others say nothing of tensors."""
        state, target = self.pop(), self._stack[-1]
        if isinstance(state, dict) and "_metadata" not in state:
            target.update(state)

    def storage(self) -> None:
        """A reference by key: ('storage', type, key, device, size, ...)."""
        kind, named, key, _, size = self.pop()[:5]
        if kind != "storage":
            raise DamagedFile("it refers to something that is no storage")
        self.push(Storage(key, _STORAGES[named.name], size))


_INSTRUCTIONS: dict[int, Callable[[_Machine], Any]] = {
    0x80: lambda m: m.number("B"),  # protocol
    0x95: lambda m: m.number("Q"),  # length of a frame: of use to streams only
    ord("("): _Machine.mark,
    ord("0"): _Machine.pop,
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("K"): lambda m: m.push(m.number("B")),
    ord("M"): lambda m: m.push(m.number("H")),
    ord("J"): lambda m: m.push(m.number("i")),
    0x8A: lambda m: m.push(int.from_bytes(m.view(m.number("B")), "little", signed=True)),
    ord("G"): lambda m: m.push(struct.unpack(">d", m.view(8))[0]),
    ord("X"): lambda m: m.push(m.text(m.number("I"))),
    0x8C: lambda m: m.push(m.text(m.number("B"))),
    0x8D: lambda m: m.push(m.text(m.number("Q"))),
    ord("C"): lambda m: m.push(m.view(m.number("B"))),
    ord("B"): lambda m: m.push(m.view(m.number("I"))),
    0x8E: lambda m: m.push(m.view(m.number("Q"))),
    ord(")"): lambda m: m.push(()),
    0x85: lambda m: m.push((m.pop(),)),
    0x86: lambda m: m.push((m.pop(), m.pop())[::-1]),
    0x87: lambda m: m.push((m.pop(), m.pop(), m.pop())[::-1]),
    ord("t"): lambda m: m.push(tuple(m.pop_mark())),
    ord("]"): lambda m: m.push([]),
    ord("a"): lambda m: m.extend([m.pop()]),
    ord("e"): lambda m: m.extend(m.pop_mark()),
    ord("}"): lambda m: m.push({}),
    ord("s"): lambda m: m.update([m.pop(), m.pop()][::-1]),
    ord("u"): lambda m: m.update(m.pop_mark()),
    ord("q"): lambda m: m.store(m.number("B")),
    ord("r"): lambda m: m.store(m.number("I")),
    0x94: _Machine.memoize,
    ord("h"): lambda m: m.recall(m.number("B")),
    ord("j"): lambda m: m.recall(m.number("I")),
    ord("c"): lambda m: m.name(m.line(), m.line()),
    0x93: lambda m: m.name(*(m.pop(), m.pop())[::-1]),
    ord("R"): _Machine.call,
    0x81: _Machine.call,  # a new object of a class
    ord("b"): _Machine.build,
    ord("Q"): _Machine.storage,
}
