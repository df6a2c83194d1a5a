"""Files that commands write: whether they can be, before any work; and then whole or not at all."""

import contextlib
import errno
import io
import os
import pathlib
import tempfile
from collections.abc import Iterator


def check(option: str, path: pathlib.Path | None) -> None:
    """Makes the folder of a file that an option names. Raises ValueError if the file could not be written there."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"`{option}` (={str(path)!r}) cannot be written ({error.strerror}): give another path"
        ) from error
    if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
        raise ValueError(f"`{option}` (={str(path)!r}) is no file that can be written: give another path")


def check_directory(option: str, path: pathlib.Path) -> None:
    """Raises ValueError if a directory could not be made, or is none to write in; makes nothing."""
    there = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ValueError(
            f"`{option}` (={str(path)!r}) is no directory that can be written ({error.strerror}): give another path"
        ) from error


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a place to write a file to, which then replaces the one at `path`, or after an error is removed.

    A link to a file stays one. Raises OSError for what is no file: renaming one to /dev/null would end that device.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no file", str(path))
    partial = path.with_name(path.name + ".part")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def append(file: io.FileIO, data: bytes) -> None:
    """Adds all of `data` to the end of a file, or nothing when the disk is full; raises OSError.

    The system may take a part of it without an error, to which the next line would be added.
    """
    end = file.seek(0, os.SEEK_END)
    try:
        while data:
            data = data[file.write(data) :]
    except OSError:
        file.truncate(end)
        raise


def write(path: pathlib.Path, data: bytes) -> None:
    """Writes a file, or leaves what was there; its permissions follow the umask. Raises OSError."""
    try:
        with replacing(path) as partial:
            partial.write_bytes(data)
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror})") from error


def runs_inside(directory: pathlib.Path) -> list[pathlib.Path]:
    """The work directories below one, as those of each start and seed of a fine-tuning."""
    return sorted(file.parent for depth in ("*", "*/*") for file in directory.glob(f"{depth}/metrics.jsonl"))
