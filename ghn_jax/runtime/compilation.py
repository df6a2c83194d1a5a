"""Counts XLA compilations, and keeps them on disk for the next run."""

import contextlib
import os
import pathlib
import tempfile
import warnings
import zlib

import jax

try:
    from compression.zstd import ZstdError, decompress  # pyright: ignore[reportMissingImports]
except ImportError:  # before Python 3.14
    ZstdError, decompress = zlib.error, None

_COMPILE = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT = "/jax/compilation_cache/cache_hits"

_ENTRY = "-cache"
"""How jax ends the names of the files that it keeps programs in."""

_ZSTD = bytes.fromhex("28b52ffd")
"""How a program begins that jax compressed with Zstandard, of Python or of another library; others are zlib's."""

_COARSEST_CLOCK = 2.0
"""Seconds to which a file system may round times."""


class CompilationCounter:
    """Counts what XLA compiles while it is registered.

    Attributes:
      programs: compiled, or loaded from the persistent cache.
      cached: programs loaded from the persistent cache.
      seconds: time spent on both.
    """

    def __init__(self) -> None:
        self.programs = self.cached = 0
        self.seconds = 0.0

    @property
    def count(self) -> int:
        """Programs compiled, those found in the persistent cache not counted."""
        return self.programs - self.cached

    def register(self) -> None:
        """Starts counting, until the process ends."""
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        jax.monitoring.register_event_listener(self._on_event)

    def _on_duration(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILE:
            self.programs += 1
            self.seconds += duration_secs

    def _on_event(self, event: str, **_: str | int) -> None:
        self.cached += event == _CACHE_HIT


def default_cache_dir() -> pathlib.Path:
    """Where compiled programs are kept unless told otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "ghn_jax" / "xla"


def use_persistent_cache(directory: pathlib.Path | None = None) -> None:
    """Keeps every compiled program on disk, for later runs of any command, wherever the directory is moved.

    Programs that were cut, as by a kill, or garbled are removed, so that they are compiled and kept again.

    Warns, once, of these, and of a directory that cannot be written: programs are then kept in memory alone.
    """
    path = (directory or default_cache_dir()).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        warnings.warn(
            f"compiled programs are not kept: {path} cannot be written ({error.strerror}); give another "
            "--compilation_cache",
            stacklevel=2,
        )
        return
    removed = remove_damaged(path)
    if removed:
        warnings.warn(
            f"{removed} compiled programs in {path} were damaged: they are compiled again", stacklevel=2
        )
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # XLA's own caches have a path, which would be part of what a program is found by
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def remove_damaged(directory: pathlib.Path) -> int:
    """Removes compiled programs that cannot be read, of those that changed since the last call; says how many.

    jax passes over such a file, with a warning at every start, and never replaces it.
    """
    stamp = directory / "checked"
    since = stamp.stat().st_mtime - _COARSEST_CLOCK if stamp.exists() else 0.0
    stamp.touch()
    removed = 0
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if entry.name.endswith(_ENTRY)]
    for path in map(directory.joinpath, names):
        with contextlib.suppress(FileNotFoundError):  # another command removes them too
            if path.stat().st_ctime >= since and _is_damaged(path.read_bytes()):
                path.unlink()
                removed += 1
    return removed


def _is_damaged(program: bytes) -> bool:
    """Whether a compressed program cannot be read; one that only another library reads counts as whole."""
    try:
        if not program.startswith(_ZSTD):
            zlib.decompress(program)
        elif decompress is not None:
            decompress(program)
    except (zlib.error, ZstdError):
        return True
    return False
