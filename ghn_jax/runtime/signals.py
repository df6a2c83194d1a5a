"""Signals that ask a command to end: Ctrl-C, what a scheduler sends before it takes the machine, a closed terminal."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

_SOON = 0.05
"""Seconds."""

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A command ends since it was asked to.

    Attributes:
      code: the exit code that shells know: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP.
    """

    def __init__(self, number: int, message: str = "the same command goes on where it stopped"):
        self.number, self.code = number, 128 + number
        super().__init__(f"interrupted by {signal.Signals(number).name}: {message}")


class Request:
    """Whether this process was asked to end.

    Attributes:
      number: of the signal; 0 if there was none.
    """

    def __init__(self) -> None:
        self.number = 0


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Inside, the first signal raises Interrupted, wherever the main thread is; a second one ends the process."""
    request = Request()

    def on_signal(number: int, _: object) -> None:
        _end_if_second(request, number)
        raise Interrupted(number)

    with _handled_by(on_signal), _raised_again(request):
        yield


@contextlib.contextmanager
def _raised_again(request: Request) -> Iterator[None]:
    """Inside, an Interrupted that Python drops, as in a destructor or a callback of its collector, comes once more."""
    hook = sys.unraisablehook
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def on_dropped(dropped: Any) -> None:
        if isinstance(dropped.exc_value, Interrupted) and signal.getsignal(signal.SIGALRM) is on_time:
            signal.setitimer(signal.ITIMER_REAL, _SOON)
        else:
            hook(dropped)

    def on_time(*_: object) -> None:
        raise Interrupted(request.number)

    before, sys.unraisablehook = signal.signal(signal.SIGALRM, on_time), on_dropped
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        if sys.unraisablehook is on_dropped:  # else a failed write has put its own before it, which must stay
            sys.unraisablehook = hook


@contextlib.contextmanager
def noted(remark: str) -> Iterator[Request]:
    """Inside, the first signal is noted and `remark` printed; a second one ends the process."""
    request = Request()

    def on_signal(number: int, _: object) -> None:
        _end_if_second(request, number)
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{remark}\n".encode())

    with _handled_by(on_signal):
        yield request


def _end_if_second(request: Request, number: int) -> None:
    if request.number:
        os._exit(128 + number)
    request.number = number


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Handles signals in the main thread, except those that the process was started to ignore (nohup)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ASKING}
    handled = [number for number in ASKING if before[number] not in (signal.SIG_IGN, None)]
    for number in handled:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])
