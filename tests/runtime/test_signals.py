"""Signals that come at a bad moment."""

import signal
import subprocess
import sys

import pytest

from ghn_jax.runtime import late_callbacks, signals

DROPPED = """
import os, signal, time
from ghn_jax.runtime import commands

class Freed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)  # where Python runs the handler, and drops what it raises

with commands.errors_as_lines():
    Freed()
    time.sleep(30)
"""


def test_a_request_that_comes_in_a_destructor_is_not_lost():
    done = subprocess.run([sys.executable, "-c", DROPPED], capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr == "interrupted by SIGTERM: the same command goes on where it stopped\n"


def test_what_a_failed_write_keeps_quiet_stays_quiet_after_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "unraisablehook", before := sys.unraisablehook)
    with pytest.raises(OSError, match="full"), signals.raised(), late_callbacks.unheard():
        raise OSError("full")
    assert sys.unraisablehook is not before
