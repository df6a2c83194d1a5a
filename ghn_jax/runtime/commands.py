"""What the commands share: options from the command line, and errors as one line."""

import contextlib
import dataclasses
import functools
import io
import itertools
import logging
import os
import pathlib
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

from ghn_jax.runtime import memory, origin, signals
from ghn_jax.runtime.errors import expand_home, unknown_name
from ghn_jax.runtime.extras import extra

T = TypeVar("T")

_MEMORY = ("meta_batch_size", "batch_size", "micro_batch_size", "image_size", "channels")
"""Options that memory grows with."""

_MISTAKE = (
    "error: this is a mistake in ghn_jax or in a library that it uses, not in what you gave: please report it, with "
    "the command, the lines above and what `python -m ghn_jax` prints"
)


def run(options: type[T], main: Callable[[T], None]) -> None:
    """Parses `options` from the command line and calls `main`, in `errors_as_lines`."""
    memory.reuse_freed_memory()
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs a traceback of what it raises too
    with errors_as_lines(_names(options)):
        main(parse(options, sys.argv[1:]))


def parse(options: type[T], arguments: Sequence[str]) -> T:
    """Options from the command line, `~` in paths expanded; `--help` prints them and ends the process.

    Raises ValueError for an unknown option, and a value that is empty or of another type.
    """
    with extra("train"):
        import tyro

    names = _names(options)
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name.replace("-", "_") not in (*names, "help"):
            raise unknown_name("option", f"--{name}", [f"--{name}" for name in names])
        if equals and not value:
            raise ValueError(f"`{name}` is empty: give a value, or leave --{name} out")
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)
    module = sys.modules["__main__"].__spec__
    program = module and f"python -m {module.name.removesuffix('.__main__')}"
    parsed: Any = _without_box(lambda: tyro.cli(options, args=arguments, config=config, prog=program))
    return dataclasses.replace(parsed, **{name: _expanded(name, getattr(parsed, name)) for name in names})


def _expanded(name: str, value: Any) -> Any:
    """An argument whose paths have the home directory for `~`, which a shell leaves in --name=~/file."""
    if isinstance(value, tuple):
        return tuple(_expanded(name, part) for part in value)
    return expand_home(name, value) if isinstance(value, pathlib.Path) else value


def _names(options: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cast(Any, options))]


def call(program: str, functions: dict[str, Callable[..., None]]) -> None:
    """Calls a function with arguments from the command line, in `errors_as_lines`.

    Args:
      program: how the command is called.
      functions: by the word that chooses one, if there are several or the word is not empty.
    """
    with errors_as_lines():
        with extra("train"):
            import tyro

        def parse() -> Callable[[], None]:
            later = {name: _bound(function) for name, function in functions.items()}
            if set(later) == {""}:
                return tyro.cli(later[""], prog=program, use_underscores=True)
            return tyro.extras.subcommand_cli_from_dict(later, prog=program, use_underscores=True)

        _without_box(parse)()


def _bound(function: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """What takes the same arguments, and gives a call with them."""

    @functools.wraps(function)
    def bind(*arguments: Any, **named: Any) -> Callable[[], None]:
        return functools.partial(function, *arguments, **{k: _expanded(k, v) for k, v in named.items()})

    return bind


def _without_box(parse: Callable[[], T]) -> T:
    """What tyro parses. Raises ValueError with the first sentence of what it draws a box around."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse()
    except SystemExit as ended:
        if not ended.code:
            raise
    # tyro draws a box; the first paragraph in it says what is wrong
    inside = [line.strip("│ ") for line in said.getvalue().splitlines()[1:]]
    first = itertools.takewhile(lambda line: line and not line.startswith(("─", "╰")), inside)
    raise ValueError(f"{' '.join(first)} --help lists the options")


@contextlib.contextmanager
def errors_as_lines(options: Sequence[str] = ()) -> Iterator[None]:
    """Ends the process with the exit code of `report` for errors and signals; `options` are those of the command."""
    _make_output_usable()
    try:
        with signals.raised():
            yield
    except KeyboardInterrupt as error:
        code = report(error, options)
        sys.stdout.flush()
        os._exit(code)  # threads that compile would have to be waited for
    except Exception as error:
        raise SystemExit(report(error, options)) from None


def report(error: BaseException, options: Sequence[str] = ()) -> int:
    """Prints what ended a command, and returns its exit code.

    What the user can mend, in `options`, files, memory or a model's code, is one line and 2. A signal is 128 and its
    number, and so, without a word, is that the reader of the output went away, as `head` does. All else is a mistake of
    this package or of a library: a traceback, whom to tell, and 1.
    """
    if isinstance(error, KeyboardInterrupt):
        interrupted = error if isinstance(error, signals.Interrupted) else signals.Interrupted(signal.SIGINT)
        print(interrupted, file=sys.stderr, flush=True)
        return interrupted.code
    if isinstance(error, BrokenPipeError) and _nobody_reads():
        return 128 + signal.SIGPIPE
    if origin.is_for_the_user(error):
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    if origin.is_out_of_memory(error):
        print(f"error: {_out_of_memory(error, options)}", file=sys.stderr, flush=True)
        return 2
    if origin.place_in_users_code(error):
        print(f"error: {origin.described(error)}", file=sys.stderr, flush=True)
        return 2
    library = (getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and library not in ("", "ghn_jax"):
        print(
            f"error: `{library}` is not installed: python -m pip install -r requirements.txt, in a clone, or pip "
            "install 'ghn-jax[all]'",
            file=sys.stderr,
            flush=True,
        )
        return 2
    traceback.print_exception(error)
    print(_MISTAKE, file=sys.stderr, flush=True)
    return 1


def _out_of_memory(error: BaseException, options: Sequence[str]) -> str:
    reason = str(error).strip().partition("\n")[0]
    lower = " or ".join(f"--{name}" for name in _MEMORY if name in options)
    remedy = f"lower {lower}, or use" if lower else "use"
    return f"out of memory{f' ({reason})' if reason else ''}: {remedy} a device with more that is free"


def _make_output_usable() -> None:
    """Has prints go nowhere if standard output is closed, and characters that its encoding lacks be written escaped."""
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    elif isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _nobody_reads() -> bool:
    """Whether standard output is a pipe that is closed at its other end; what is left to be written is then dropped."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    closed = any(events & select.POLLERR for _, events in output.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed
