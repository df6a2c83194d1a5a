"""How a run is getting on."""

import time


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
