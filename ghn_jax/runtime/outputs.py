"""Files that commands write: whether they can be, before any work; and then whole or not at all."""

import contextlib
import os
import pathlib
import tempfile


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
    if path.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
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


def write(path: pathlib.Path, data: bytes) -> None:
    """Writes a file, or leaves what was there; its permissions follow the umask."""
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written ({error.strerror})") from error
