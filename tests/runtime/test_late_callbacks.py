"""Tracebacks that threads print when a write has failed."""

import sys
import types

import pytest

from ghn_jax.runtime import late_callbacks


def test_what_comes_of_a_failure_is_unheard_and_all_else_is_not(monkeypatch: pytest.MonkeyPatch):
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    late, other = (
        types.SimpleNamespace(exc_value=RuntimeError(t)) for t in ("Event loop is closed", "other")
    )
    with pytest.raises(OSError, match="no space"), late_callbacks.unheard():
        raise OSError("no space")
    for unraisable in (late, other):
        sys.unraisablehook(unraisable)  # pyright: ignore[reportArgumentType]
    assert heard == [other]


def test_after_a_success_all_is_heard(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "unraisablehook", before := print)
    with late_callbacks.unheard():
        pass
    assert sys.unraisablehook is before
