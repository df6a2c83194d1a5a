"""The C library's memory."""

import ctypes

import pytest

from ghn_jax import memory


@pytest.mark.parametrize("error", [OSError, TypeError, AttributeError])
def test_another_c_library_is_left_as_it_is(error: type[Exception], monkeypatch: pytest.MonkeyPatch):
    asked = []

    def absent(name: None) -> None:
        asked.append(name)
        raise error

    monkeypatch.setattr(ctypes, "CDLL", absent)
    memory.reuse_freed_memory()
    memory.release_freed_memory()
    assert asked == [None, None]
