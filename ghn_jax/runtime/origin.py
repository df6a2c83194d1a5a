"""Where an exception comes from: what a user gave, a user's own code, or a mistake in this package or a library.

A type does not say it: a ValueError is what this package raises for a wrong option, and what NumPy raises when this
package hands it arrays of the wrong shapes. The traceback does: on its innermost frame stands either a `raise` of this
package, which is a sentence to the user, or something else.
"""

import dis
import os
import pathlib
import sysconfig
from types import TracebackType

_PACKAGE = str(pathlib.Path(__file__).parent.parent) + os.sep
_PYTHON = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")})
_RUNS_COMMANDS = _PACKAGE + os.path.join("runtime", "commands.py")


def is_for_the_user(error: BaseException) -> bool:
    """Whether `error` says what the user can mend: its text is made for them, or the system refused a file.

    That is a ValueError or OSError that a `raise` of this package or its scripts made, or an OSError with the system's
    number.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return True
    frames = _frames(error)
    if not isinstance(error, ValueError | OSError) or not frames or frames[-1] is _in_users_code(frames):
        return False
    code, instruction = frames[-1].tb_frame.f_code, frames[-1].tb_lasti
    return not _is_library(code.co_filename) and dis.opname[code.co_code[instruction]] == "RAISE_VARARGS"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a device, or of the machine, did not suffice."""
    if isinstance(error, RuntimeError):  # jax's own, whose type does not say it
        return "RESOURCE_EXHAUSTED" in str(error) or "CUDA_ERROR_OUT_OF_MEMORY" in str(error)
    return isinstance(error, MemoryError)


def place_in_users_code(error: BaseException) -> str | None:
    """File, line and function of the innermost frame in code that this package called and that is of no library.

    A model that a user names is the only such code. None if `error` did not pass through any.
    """
    frame = _in_users_code(_frames(error))
    if frame is None:
        return None
    code = frame.tb_frame.f_code
    return f"{code.co_filename}, line {frame.tb_lineno}, in {code.co_name}"


def described(error: BaseException) -> str:
    """The error of a user's code in a line: its type, where it was raised, and the first line of what it says."""
    place = place_in_users_code(error)
    first_line = str(error).strip().partition("\n")[0]
    what = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
    return f"{what}, at {place}" if place else what


def _in_users_code(frames: list[TracebackType]) -> TracebackType | None:
    called, innermost = False, None
    for frame in frames:
        file = frame.tb_frame.f_code.co_filename
        if file.startswith(_PACKAGE):
            called = called or file != _RUNS_COMMANDS  # which calls commands
        elif called and not _is_library(file):
            innermost = frame
    return innermost


def _frames(error: BaseException) -> list[TracebackType]:
    """Frames of a traceback, outermost first."""
    frames, frame = [], error.__traceback__
    while frame is not None:
        frames.append(frame)
        frame = frame.tb_next
    return frames


def _is_library(file: str) -> bool:
    """Whether a source file is Python's or of an installed package other than this one."""
    if file.startswith(_PACKAGE):
        return False
    installed = {"site-packages", "dist-packages"} & set(pathlib.PurePath(file).parts)
    return file.startswith(("<", *_PYTHON)) or bool(installed)
