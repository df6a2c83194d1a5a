"""Helpers for messages that name the argument, its value and a remedy."""

import contextlib
import difflib
import math
import pathlib
from collections.abc import Iterable, Iterator, Sequence


def unknown_name(argument: str, value: object, valid: Iterable[str]) -> ValueError:
    """A ValueError for a name that is not among `valid`, with the nearest ones first."""
    names = [str(name) for name in valid]
    nearest = difflib.get_close_matches(str(value), names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(repr(n) for n in nearest)}? " if nearest else ""
    return ValueError(f"`{argument}` (={value!r}) is unknown: {hint}valid are {', '.join(names)}")


def some(names: Sequence[str]) -> str:
    """The first of these, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextlib.contextmanager
def called(argument: str, option: str) -> Iterator[None]:
    """What a ValueError inside calls `argument` is called `option` where the user gave it."""
    try:
        yield
    except ValueError as error:
        if f"`{argument}`" not in str(error):
            raise
        raise type(error)(str(error).replace(f"`{argument}`", f"`{option}`")) from error


def expand_home(argument: str, path: pathlib.Path) -> pathlib.Path:
    """The path with `~` as the home directory; ValueError if it is that of nobody."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"`{argument}` (={str(path)!r}) is in the home of a user who is unknown: give the whole path, or ./{path}"
        ) from error


def check_directory(argument: str, path: pathlib.Path, remedy: str) -> None:
    """Raises ValueError, with the remedy, for a directory to be read that does not exist or is none."""
    if not path.is_dir():
        what = "is no directory" if path.exists() else "does not exist"
        raise ValueError(f"`{argument}` (={str(path)!r}) {what}: {remedy}")


LARGEST = 2**31 - 1
"""The largest integer that an option takes: arrays count in 32 bits."""


def check_range(
    argument: str, value: float | None, least: float, most: float = LARGEST, above: bool = False
) -> None:
    """Raises ValueError for a number outside least..most, or not `above` the least; None passes."""
    if value is None or (math.isfinite(value) and least <= value <= most and not (above and value == least)):
        return
    if value < least == 0 and not above:
        raise ValueError(f"`{argument}` (={value}) must not be negative")
    bound = "positive" if above else f"at least {least}"
    raise ValueError(f"`{argument}` (={value}) must be {bound}, and at most {most}")
