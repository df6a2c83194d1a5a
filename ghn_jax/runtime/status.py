"""What a command is doing, from its first second on: a line redrawn in place on a terminal, and lines elsewhere."""

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol, TextIO

from ghn_jax.runtime.compilation import CompilationCounter

REDRAWN, COMPILING, SILENT = 0.2, 10.0, 60.0
"""Seconds between two drawings on a terminal; without a line elsewhere, while programs are compiled and otherwise."""

_CLEAR = "\r\x1b[K"


class Shown(Protocol):
    """What takes news of long work."""

    def doing(self, what: Callable[[], str] | str) -> None:
        """What goes on from now on; a function is asked again each time that it is shown."""
        ...

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        ...


class Lines:
    """Takes the lines that stay, and nothing else."""

    def __init__(self, write: Callable[[str], None]):
        self._write = write

    def say(self, text: str) -> None:
        """Passes a line on."""
        self._write(text)

    def doing(self, what: Callable[[], str] | str) -> None:
        """Shows nothing."""


class Status:
    """Shows what goes on while it is entered, in a thread of its own.

    On a terminal the last line is redrawn in place. Elsewhere, as in a log, a line is printed when there was none for
    ten seconds in which something was compiled, or for a minute.
    """

    def __init__(
        self, quiet: bool = False, file: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ):
        """Shows nothing yet.

        Args:
          quiet: prints nothing at all, as all processes but one do.
          file: where to [standard output].
          clock: tells the time in seconds.
        """
        self._quiet = quiet
        self._file = sys.stdout if file is None else file
        self._terminal = self._file.isatty() and os.environ.get("TERM") != "dumb"
        self._clock = clock
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_showing, daemon=True)
        self._said, self._programs = clock(), 0
        self._doing: Callable[[], str] = str
        self.counter = CompilationCounter()

    def __enter__(self) -> "Status":
        self.counter.register()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with self._lock:
            self._write(_CLEAR if self._terminal else "")

    def doing(self, what: Callable[[], str] | str) -> None:
        """What goes on from now on; a function is asked again each time that it is shown."""
        self._doing = what if callable(what) else lambda: what

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        with self._lock:
            self._write((_CLEAR if self._terminal else "") + text + "\n")

    def show(self) -> None:
        """Draws the line, or prints it if it is time to."""
        programs = self.counter.programs
        compiled = f"{self.counter.count} programs compiled, {self.counter.cached} found on disk"
        text = f"{self._doing()} ({compiled})" if programs else self._doing()
        with self._lock:
            if self._terminal:
                self._write(_CLEAR + text[: shutil.get_terminal_size().columns - 1])
            elif self._clock() - self._said >= (COMPILING if programs > self._programs else SILENT):
                self._programs = programs
                self._write(text + "\n")

    def _write(self, text: str) -> None:
        self._said = self._clock()
        if not self._quiet:
            self._file.write(text)
            self._file.flush()

    def _keep_showing(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            while not self._ended.wait(REDRAWN if self._terminal else 1.0):
                self.show()
