"""Helpers for messages that name the argument, its value and a remedy."""

import difflib
from collections.abc import Iterable


def unknown_name(argument: str, value: object, valid: Iterable[str]) -> ValueError:
    """A ValueError for a name that is not among `valid`, with the nearest ones first."""
    names = [str(name) for name in valid]
    nearest = difflib.get_close_matches(str(value), names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(repr(n) for n in nearest)}? " if nearest else ""
    return ValueError(f"`{argument}` (={value!r}) is unknown: {hint}valid are {', '.join(names)}")
