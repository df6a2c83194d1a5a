"""How a run is getting on."""

import collections
import statistics
import time

_LATELY = 50
"""Steps that the rate is taken from."""


class Clock:
    """Rate and time left, as of steps in which nothing is compiled.

    The first steps compile what later ones have ready, and a step is then mostly a wait for that. So the rate is the
    median of the latest steps that compiled nothing, and until there are some, of what steps take without the wait.
    """

    def __init__(self, step: int, last: int):
        self._start = self._then = self._begun = time.monotonic()
        self._step, self._last = step, last
        self._quiet, self._busy = (collections.deque[float](maxlen=_LATELY) for _ in range(2))
        self._ticks = 0

    def begin(self) -> None:
        """Notes that a step has what it waited for."""
        self._begun = time.monotonic()

    def tick(self, step: int, compiled: bool = False) -> None:
        """Notes that a step is done, and whether something was compiled meanwhile."""
        now = time.monotonic()
        self._ticks += 1
        if self._ticks == 2:  # the first one compiled the GHN
            self._busy.clear()
        if compiled:
            self._busy.append(now - max(self._begun, self._then))
        else:
            self._quiet.append(now - self._then)
        self._then, self._step = now, step

    def describe(self, compiling: str = "", first: str = "the GHN") -> str:
        """What a run is doing, `compiling` if anything; `first` is what the first step compiles."""
        step = f"step {min(self._step + 1, self._last)}/{self._last}"
        if self._begun <= self._then and compiling:
            return f"{step}: compiling its {compiling}, ETA {self.eta}"
        if not self._ticks:
            return f"{step}: compiling {first}, ETA {self.eta}"
        return f"{step}, ETA {self.eta}" + (f"; compiling ahead: {compiling}" if compiling else "")

    @property
    def seconds(self) -> float:
        """Since the loop began."""
        return self._then - self._start

    @property
    def _per_step(self) -> float:
        return statistics.median(self._quiet or self._busy or [0.0])

    @property
    def rate(self) -> float:
        """Steps per second, lately."""
        return 1.0 / max(self._per_step, 1e-9)

    @property
    def eta(self) -> str:
        """Time left, as h:mm:ss; a question mark until a step without the first one's compilations is done."""
        if not self._quiet and self._ticks < 2:
            return "?"
        left = int((self._last - self._step) * self._per_step)
        return f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
