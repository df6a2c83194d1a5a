"""How a run is getting on: its rate, and a file of metrics."""

import json
import os
import pathlib
import time
from typing import Any


class Clock:
    """Rate and time left, the first steps (which compile) weighing less and less."""

    def __init__(self, step: int, last: int):
        self._start = self._then = time.monotonic()
        self._step, self._last, self._per_step = step, last, 0.0

    def tick(self, step: int) -> None:
        """Notes that a step is done."""
        now = time.monotonic()
        latest = now - self._then
        self._per_step = 0.9 * self._per_step + 0.1 * latest if self._per_step else latest
        self._then, self._step = now, step

    @property
    def seconds(self) -> float:
        """Since the loop began."""
        return self._then - self._start

    @property
    def rate(self) -> float:
        """Steps per second, lately."""
        return 1.0 / max(self._per_step, 1e-9)

    @property
    def eta(self) -> str:
        """Time left, as h:mm:ss."""
        left = int((self._last - self._step) * self._per_step)
        return f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"


class MetricsFile:
    """JSON lines, one a step; what an interrupted run wrote after its last checkpoint is dropped.

    Without a path nothing is written.
    """

    def __init__(self, path: pathlib.Path | None, step: int):
        self._file = None
        if path is not None:
            kept = [line for line in _lines(path) if json.loads(line)["step"] <= step]
            partial = path.with_name(path.name + ".part")
            partial.write_text("".join(f"{line}\n" for line in kept))
            os.replace(partial, path)
            self._file = path.open("a")

    def write(self, **values: Any) -> None:
        """Appends a line."""
        if self._file is not None:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def _lines(path: pathlib.Path) -> list[str]:
    """The whole lines of a file, if it exists."""
    if not path.exists():
        return []
    return [line for line in path.read_text().split("\n")[:-1] if line]
