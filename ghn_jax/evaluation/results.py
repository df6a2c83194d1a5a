"""Results of evaluations: JSON lines, a header and then one line an architecture, to which a later run adds."""

import json
import os
import pathlib
import threading
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ghn_jax.runtime import outputs

_ADDING = threading.Lock()

COLUMNS = ("arch", "parameters", "top1", "top5", "predict_seconds")
"""What every line of an evaluation but the header has."""


def open_results(
    path: pathlib.Path, header: dict[str, Any], columns: Sequence[str] = COLUMNS
) -> dict[str, dict[str, Any]]:
    """Results so far, by architecture; begins the file if there is none. A last line that was cut short is dropped.

    Args:
      header: the first line, with "ckpt".
      columns: what each other line has at least.

    Raises ValueError for a file of something else, which is left as it is.
    """
    text = path.read_bytes() if path.exists() else b""
    if not text:
        path.parent.mkdir(parents=True, exist_ok=True)
        outputs.write(path, f"{json.dumps(header)}\n".encode())
        return {}
    *lines, cut = text.split(b"\n")
    records = [_record(path, number, line) for number, line in enumerate(lines, start=1)]
    if not records or "ckpt" not in records[0]:
        raise ValueError(
            f"`results` (={str(path)!r}) is no file of results: give another --results, or move it away"
        )
    if records[0] != header:
        different = [k for k in header | records[0] if records[0].get(k) != header.get(k)]
        raise ValueError(
            f"`results` (={str(path)!r}) holds another evaluation (other {', '.join(different)}): "
            "give another --results, or move it away"
        )
    for number, record in enumerate(records[1:], start=2):
        if not record.keys() >= set(columns):
            raise _damaged(path, number)
    if cut:
        os.truncate(path, len(text) - len(cut))
    return {record["arch"]: record for record in records[1:]}


def _record(path: pathlib.Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise _damaged(path, number) from error
    if not isinstance(record, dict):
        raise _damaged(path, number)
    return record


def _damaged(path: pathlib.Path, number: int) -> ValueError:
    return ValueError(
        f"`results` (={str(path)!r}) is damaged, or of something else (line {number}): give another --results, or move "
        "it away"
    )


def append(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Adds the line of an architecture; several threads may. Raises OSError, and adds nothing, for a full disk."""
    try:
        with _ADDING, path.open("ab", buffering=0) as file:
            outputs.append(file, f"{json.dumps(record)}\n".encode())
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error.strerror}): make room, then start the same command again, which goes on "
            "where it stopped"
        ) from error


def checksum(params: Any) -> str:
    """Tells weights apart."""
    crc = 0
    for leaf in jax.tree.leaves(params):
        crc = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), crc)
    return f"{crc:08x}"


def training(info: dict[str, Any]) -> str:
    """How weights were trained, in a few words: the steps of all stages, each of which began with the one before."""
    if "steps" not in info:
        return "(training unknown)"
    stages = [info]
    while (before := stages[-1].get("before")) and "steps" in before:
        stages.append(before)
    steps = " + ".join(f"{stage['steps']:,}" for stage in reversed(stages))
    return f"(trained for {steps} steps on {info['dataset']})"
