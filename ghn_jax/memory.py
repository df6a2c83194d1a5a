"""How a process' memory goes back and forth between the C library (glibc) and the system.

The arrays between a network's blocks are some megabytes each and live for milliseconds. By default glibc returns every
one of them to the system, which hands it out again empty, page by page: a tenth of the processor time of a step.
"""

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of mallopt, in malloc.h
_NEVER = -1

_ANOTHER_LIBRARY = contextlib.suppress(OSError, TypeError, AttributeError)
"""What comes of asking where there is no glibc; memory is left as it is there."""


def reuse_freed_memory() -> None:
    """Has glibc keep freed memory and use it again, for the whole process: to be called by commands, early."""
    with _ANOTHER_LIBRARY:
        library = ctypes.CDLL(None)
        library.mallopt(_TRIM_THRESHOLD, _NEVER)
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_ARENA_MAX, 1)  # others hold 64 MB at most, and leave what is larger to the first


def release_freed_memory() -> None:
    """Gives back to the system what has been freed, once: after much was compiled, say."""
    with _ANOTHER_LIBRARY:
        ctypes.CDLL(None).malloc_trim(0)
