"""Results of evaluations: JSON lines, a header and then one line an architecture, to which a later run adds."""

import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np


def open_results(path: pathlib.Path, header: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Results so far, by architecture; begins the file if there is none."""
    records = list(_records(path))
    if not records:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(header) + "\n")
        return {}
    if records[0] != header:
        different = [k for k in header if records[0].get(k) != header[k]]
        raise ValueError(
            f"`results` (={str(path)!r}) holds another evaluation (its {', '.join(different)} differ): "
            "give another --results, or remove the file"
        )
    path.write_text("".join(json.dumps(record) + "\n" for record in records))  # drops a line cut short
    return {record["arch"]: record for record in records[1:]}


def _records(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text().split("\n")[:-1]:
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"`results` (={str(path)!r}) is damaged ({error}): remove it or give another"
            ) from error


def append(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Adds the line of an architecture."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def checksum(params: Any) -> str:
    """Tells weights apart."""
    crc = 0
    for leaf in jax.tree.leaves(params):
        crc = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), crc)
    return f"{crc:08x}"


def training(info: dict[str, Any]) -> str:
    """How weights were trained, in a few words."""
    return (
        f"(trained for {info['steps']} steps on {info['dataset']})"
        if "steps" in info
        else "(training unknown)"
    )
