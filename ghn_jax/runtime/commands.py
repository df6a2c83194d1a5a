"""What the commands share: options from the command line, and errors as one line."""

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import TypeVar

from ghn_jax.runtime import memory
from ghn_jax.runtime.extras import extra

Options = TypeVar("Options")


def run(options: type[Options], main: Callable[[Options], None]) -> None:
    """Parses `options` from the command line and calls `main`, in `errors_as_lines`."""
    memory.reuse_freed_memory()
    with errors_as_lines():
        with extra("train"):
            import tyro
        main(tyro.cli(options, config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)))


@contextlib.contextmanager
def errors_as_lines() -> Iterator[None]:
    """Ends the process with the exit code of `report` for what is the user's to mend, and for Ctrl-C."""
    try:
        yield
    except (ValueError, OSError, KeyboardInterrupt) as error:
        raise SystemExit(report(error)) from None


def report(error: BaseException) -> int:
    """Prints what ended a command, and returns its exit code.

    A ValueError or OSError is the user's to mend: one line and 2. Ctrl-C is 130. All else is a bug: a traceback and 1.
    """
    if isinstance(error, ValueError | OSError):
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    if isinstance(error, KeyboardInterrupt):
        print("interrupted; the same command goes on where it stopped", file=sys.stderr, flush=True)
        return 130
    traceback.print_exception(error)
    return 1
