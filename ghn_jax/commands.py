"""What the commands share: options from the command line, and errors as one line."""

import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

Options = TypeVar("Options")


def run(options: type[Options], main: Callable[[Options], None]) -> None:
    """Parses `options` from the command line and calls `main`.

    A ValueError is the user's to mend: it becomes one line on stderr and exit code 2. Ctrl-C ends with code 130.
    """
    parsed = tyro.cli(options, config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff))
    try:
        main(parsed)
    except ValueError as error:
        complain(error)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the latest checkpoint", file=sys.stderr)
        raise SystemExit(130) from None


def complain(error: ValueError) -> None:
    """Prints what is wrong as one line."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
