"""The JSON lines that runs and evaluations write."""

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

Series = tuple[Float[np.ndarray, " step"], Float[np.ndarray, " step"]]
"""Steps, and a value at each."""


def read(path: pathlib.Path, argument: str) -> list[dict[str, Any]]:
    """The whole lines of a file; ValueError if there are none, or one is no JSON object."""
    try:
        lines = path.read_text().split("\n")[:-1]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"`{argument}` (={str(path)!r}) cannot be read: {reason}") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(
                f"`{argument}` (={str(path)!r}) is damaged or of something else: its line {number} is no JSON object; "
                "remove that line, or give another file"
            )
        records.append(record)
    if not records:
        raise ValueError(f"`{argument}` (={str(path)!r}) is empty: wait for the first step")
    return records


def series(records: Sequence[dict[str, Any]], name: str) -> Series:
    """The steps that have a finite value called `name`, and these values."""
    found = [(record.get("step"), record.get(name)) for record in records]
    whole = [(step, value) for step, value in found if is_finite(step) and is_finite(value)]
    steps, values = np.array(whole, float).reshape(-1, 2).T
    return steps, values


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number; one that was not finite is null, which JSON has."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
