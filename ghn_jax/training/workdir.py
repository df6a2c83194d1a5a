"""A work directory belongs to one run: it is locked while that runs, and what others left in it stays as it is."""

import contextlib
import fcntl
import json
import math
import os
import pathlib
import socket
import zlib
from collections.abc import Iterator
from typing import Any

from ghn_jax.runtime import outputs

_GOING_ON = ("seconds", "compilations", "compilation_seconds")


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the directory, if need be, and keeps other runs out of it; the lock ends with the process, however it dies.

    Raises ValueError if another run has it, and for what can be no directory.
    """
    outputs.check_directory("workdir", workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "run.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"`workdir` (={str(workdir)!r}) is in use by {file.read().strip() or 'another run'}: wait until it is "
                "done, or give another --workdir"
            ) from None
        except OSError:  # a file system without locks
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


class MetricsFile:
    """JSON lines, one a step, that go on where a checkpoint is; what an interrupted run wrote after it is dropped.

    Numbers that are not finite are written as null.

    Attributes:
      before: `seconds`, `compilations` and `compilation_seconds` at the checkpoint, which go on.
    """

    def __init__(self, path: pathlib.Path | None, mark: dict[str, int] | None):
        """Opens a file, or none without a path.

        Args:
          mark: how long it was, and its checksum, when the checkpoint was written that the run goes on from; None if
            there is no checkpoint.

        Raises ValueError for a file that is not as the run left it.
        """
        self.before = dict.fromkeys(_GOING_ON, 0)
        self._path, self._file = path, None
        if path is None:
            return
        text = path.read_bytes() if path.exists() else b""
        if text and mark is None:
            raise ValueError(
                f"`workdir` (={str(path.parent)!r}) holds {path.name}, and no checkpoint that goes with it: give "
                "another --workdir, or move that file away"
            )
        kept = text[: mark["bytes"]] if mark else b""
        if mark and path.exists() and _mark(kept) != mark:
            raise ValueError(
                f"{path} is not as the run left it at its latest checkpoint: move it away, and the same command goes "
                "on with a new one"
            )
        for line in kept.splitlines():
            record = json.loads(line)
            self.before |= {name: record[name] for name in _GOING_ON if name in record}
        self._size = _mark(kept)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)  # nothing is left to be written when the disk is full
        self._file.truncate(len(kept))

    def write(self, **values: Any) -> None:
        """Appends a line."""
        if self._file is None:
            return
        text = json.dumps({name: _json(value) for name, value in values.items()}, allow_nan=False) + "\n"
        try:
            outputs.append(self._file, text.encode())
        except OSError as error:
            raise OSError(
                f"{self._path} cannot be written ({error.strerror}): make room, then start the same command again, "
                "which goes on from the latest checkpoint"
            ) from error
        self._size = _mark(text.encode(), self._size)

    def mark(self) -> dict[str, int] | None:
        """What to keep in a checkpoint; all lines so far would survive a power cut then."""
        if self._file is None:
            return None
        os.fsync(self._file.fileno())
        return self._size

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def _mark(text: bytes, before: dict[str, int] | None = None) -> dict[str, int]:
    """Length and checksum of a text, or of one and what follows it."""
    before = before or {"bytes": 0, "crc32": 0}
    return {"bytes": before["bytes"] + len(text), "crc32": zlib.crc32(text, before["crc32"])}


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
