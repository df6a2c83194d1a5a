"""How a process' memory goes back and forth between the C library (glibc) and the system.

The arrays between a network's blocks are some megabytes each and live for milliseconds. By default glibc returns every
one of them to the system, which hands it out again empty, page by page: a tenth of the processor time of a step.
"""

import contextlib
import ctypes
import os
import pathlib

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt, in malloc.h
_NEVER = -1

_GROWTH = 2 << 30
"""Bytes: several times what most networks keep of 64 images, so that few of them begin in memory given back."""

_ANOTHER_LIBRARY = contextlib.suppress(OSError, TypeError, AttributeError)
"""What comes of asking where there is no glibc; memory is left as it is there."""


def reuse_freed_memory() -> None:
    """Has glibc keep freed memory and use it again, for the whole process: to be called by commands, early."""
    with _ANOTHER_LIBRARY:
        library = ctypes.CDLL(None)
        library.mallopt(_TRIM_THRESHOLD, _NEVER)
        library.mallopt(_MMAP_MAX, 0)


class FreedMemory:
    """What `reuse_freed_memory` keeps. It comes in pieces too small for the next large network, and so it grows."""

    def __init__(self):
        self._resident = _resident()

    def release_if_grown(self) -> None:
        """Gives it back to the system if the process has grown by 2 GiB since this was last done."""
        if _resident() - self._resident > _GROWTH:
            with _ANOTHER_LIBRARY:
                ctypes.CDLL(None).malloc_trim(0)
            self._resident = _resident()


def _resident() -> int:
    """Bytes of memory that the process holds; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    return 0
