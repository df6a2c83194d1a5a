"""Counts XLA compilations, and keeps them on disk for the next run."""

import os
import pathlib
import tempfile
import warnings

import jax

_COMPILE = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT = "/jax/compilation_cache/cache_hits"


class CompilationCounter:
    """Counts what XLA compiles while it is registered.

    Attributes:
      count: programs compiled, those found in the persistent cache not counted.
      cached: programs loaded from the persistent cache.
      seconds: time spent on both.
    """

    def __init__(self) -> None:
        self._programs = self.cached = 0
        self.seconds = 0.0

    @property
    def count(self) -> int:
        """Programs compiled so far."""
        return self._programs - self.cached

    def register(self) -> None:
        """Starts counting, until the process ends."""
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        jax.monitoring.register_event_listener(self._on_event)

    def _on_duration(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILE:
            self._programs += 1
            self.seconds += duration_secs

    def _on_event(self, event: str, **_: str | int) -> None:
        self.cached += event == _CACHE_HIT


def default_cache_dir() -> pathlib.Path:
    """Where compiled programs are kept unless told otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "ghn_jax" / "xla"


def use_persistent_cache(directory: pathlib.Path | None = None) -> None:
    """Keeps every compiled program on disk, for later runs of any command, wherever the directory is moved.

    Warns, once, of a directory that cannot be written; programs are then kept in memory alone.
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
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # XLA's own caches have a path, which would be part of what a program is found by
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
