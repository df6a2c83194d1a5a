"""What commands show while they work."""

import io

import pytest

from ghn_jax.runtime import status
from ghn_jax.runtime.status import Status


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def lines(shown: Status, time: Time, file: io.StringIO, seconds: int, programs: int = 0) -> int:
    """How many lines come in a time in which so many programs are compiled a second."""
    before = file.getvalue().count("\n")
    for _ in range(seconds):
        time.now += 1
        shown.counter.programs += programs
        shown.show()
    return file.getvalue().count("\n") - before


def test_a_log_has_a_line_each_ten_seconds_of_compiling_and_no_silent_minute():
    file, time = io.StringIO(), Time()
    shown = Status(file=file, clock=time)
    shown.doing("step 1/9")
    assert lines(shown, time, file, 60, programs=1) == 6
    assert file.getvalue().splitlines()[0] == "step 1/9 (10 programs compiled, 0 found on disk)"
    assert lines(shown, time, file, 180) == 3
    shown.say("said")
    assert lines(shown, time, file, 59) == 0
    assert "\r" not in file.getvalue()


def test_a_terminal_has_one_line_redrawn_below_what_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "8")
    file = Terminal()
    shown = Status(file=file)
    numbers = iter(range(9))
    shown.doing(lambda: f"step {next(numbers)} of many")
    shown.show()
    shown.say("said")
    shown.show()
    assert file.getvalue() == "\r\x1b[Kstep 0 \r\x1b[Ksaid\n\r\x1b[Kstep 1 "


def test_it_is_shown_from_the_start_to_the_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(status, "REDRAWN", 0.001)
    file = Terminal()
    with Status(file=file) as shown:
        shown.doing("loading")
        while "loading" not in file.getvalue():
            pass
    ended = file.getvalue()
    assert ended.endswith("\r\x1b[K")
    assert not shown._thread.is_alive()


def test_quiet_says_nothing():
    file = io.StringIO()
    with Status(quiet=True, file=file) as shown:
        shown.say("said")
    assert not file.getvalue()
