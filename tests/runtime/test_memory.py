"""The C library's memory."""

import ctypes
import platform
import subprocess
import sys

import pytest

from ghn_jax.runtime import memory

GROW_AND_RELEASE = """
import numpy as np
from ghn_jax.runtime import memory

memory.reuse_freed_memory()
memory._GROWTH = 64 << 20
freed_memory = memory.FreedMemory()
pieces = [np.ones(1 << 20, np.uint8) for _ in range(128)]
last = np.ones(1 << 10, np.uint8)  # so that the pieces are not at the end, which goes back by itself
freed_memory.release_if_grown()  # nothing is free yet
full = memory._resident()
pieces.extend(np.ones(1 << 20, np.uint8) for _ in range(128))
pieces.clear()
kept = memory._resident()
freed_memory.release_if_grown()
print(full >> 20, kept >> 20, memory._resident() >> 20)
"""


@pytest.mark.parametrize("error", [OSError, TypeError, AttributeError])
def test_another_c_library_is_left_as_it_is(error: type[Exception], monkeypatch: pytest.MonkeyPatch):
    asked = []

    def absent(name: None) -> None:
        asked.append(name)
        raise error

    monkeypatch.setattr(ctypes, "CDLL", absent)
    memory.reuse_freed_memory()
    freed_memory = memory.FreedMemory()
    monkeypatch.setattr(memory, "_GROWTH", -1)
    freed_memory.release_if_grown()
    assert asked == [None, None]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_freed_memory_is_kept_until_the_process_has_grown():
    output = subprocess.run(
        [sys.executable, "-c", GROW_AND_RELEASE], check=True, capture_output=True, text=True
    ).stdout
    full, kept, released = (int(mebibytes) for mebibytes in output.split())
    assert kept >= full + 100  # freed, and still held
    assert released < full - 100
