"""What is left of a failed write of arrays."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Keeps quiet, from a failure in it on, the traceback of each array that was still being written then.

    Threads of the library below Orbax report to an event loop that the failure has closed, and Python prints what that
    raises in each of them. The failure itself says all; everything else is reported as before.
    """
    before = sys.unraisablehook

    def report(unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = report  # they may come before the failure reaches this frame, and after
    yield
    sys.unraisablehook = before
