"""Errors told apart: what the user gave, the code of the user's model, and mistakes of this package or a library."""

import dataclasses
import importlib
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.finetuning.classifier import classifier
from ghn_jax.runtime import commands, errors, origin
from ghn_jax.targets import importing
from ghn_jax.tracing.models import trace

MODEL = """
import flax.linen as nn
import jax.numpy as jnp

def broken():
    raise RuntimeError("no weights\\nfor this one")

class Wrong(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x) + jnp.ones(4)

class Refuses(nn.Module):
    @nn.compact
    def __call__(self, x):
        raise ValueError("not today")
"""


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "their_model.py"
    path.write_text(MODEL)
    return path


def wrong_option() -> None:
    errors.check_range("steps", -1, 1)


def wrong_shapes() -> None:
    np.zeros(3).reshape(2)  # C raises it: the innermost frame is here, but at no `raise`


def wrong_shapes_in_jax() -> None:
    jax.jit(lambda x: x.reshape(2))(jnp.zeros(3))


def file_that_is_not_there() -> None:
    pathlib.Path("/no/such/file").read_text()


@pytest.mark.parametrize(
    ("fault", "kind", "code"),
    [
        (wrong_option, ValueError, 2),
        (file_that_is_not_there, FileNotFoundError, 2),
        (wrong_shapes, ValueError, 1),
        (wrong_shapes_in_jax, (ValueError, TypeError), 1),
        (lambda: int("x"), ValueError, 1),
        (lambda: {}[0], KeyError, 1),
    ],
)
def test_exit_codes(fault, kind, code: int, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(kind) as error:
        fault()
    assert commands.report(error.value) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1 or code == 1
    assert ("Traceback" in said, "please report it" in said) == (code == 1, code == 1)


def test_a_mistake_shows_the_traceback_and_ends_with_1():
    program = "from ghn_jax.runtime import commands\nwith commands.errors_as_lines(): [].remove(1)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    first, *_, kind, last = done.stderr.splitlines()
    assert first.startswith("Traceback") and kind.startswith("ValueError: list.remove(x)")
    assert last.startswith("error: this is a mistake in ghn_jax or in a library")


def test_memory_that_does_not_suffice_is_one_line(capsys: pytest.CaptureFixture[str]):
    @dataclasses.dataclass
    class Options:
        image_size: int = 32
        batch_size: int = 64
        steps: int = 1

    def ask(_: Options) -> None:
        jax.block_until_ready(jnp.zeros(2**46, "uint8"))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["ask"])
        commands.run(Options, ask)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory (RESOURCE_EXHAUSTED: ")
    assert said.endswith("): lower --batch_size or --image_size, or use a device with more that is free\n")
    assert said.count("\n") == 1
    assert commands.report(MemoryError()) == 2
    assert capsys.readouterr().err == "error: out of memory: use a device with more that is free\n"


def test_what_a_model_raises_names_its_file_and_line(file: pathlib.Path):
    with pytest.raises(ValueError, match=rf"RuntimeError: no weights, at {file}, line 6, in broken\)"):
        importing.import_model(f"{file}:broken")
    model = importing.import_model(f"{file}:Wrong")
    with pytest.raises(ValueError, match=rf"shape.*, at {file}, line 11, in __call__\)"):
        trace(model, jnp.zeros((1, 4)))


@pytest.mark.parametrize(
    ("name", "what", "line"), [("Wrong", "Incompatible", 11), ("Refuses", "not today", 16)]
)
def test_what_a_model_raises_anywhere_else_is_one_line(
    name: str, what: str, line: int, file: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    model = importing.import_model(f"{file}:{name}")
    with pytest.raises(ValueError, match=what) as error:
        classifier(model, jax.ShapeDtypeStruct((1, 4), "float32")).draw(jax.random.key(0))
    assert commands.report(error.value) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: ValueError: {what}")
    assert said.endswith(f", at {file}, line {line}, in __call__\n")


def test_files_of_libraries_are_no_users_code():
    for module in (jax, np, pathlib, pytest):
        assert module.__file__ and origin._is_library(module.__file__), module.__file__
    assert not origin._is_library(origin.__file__) and not origin._is_library(__file__)


def test_a_reader_that_went_away_is_no_error():
    program = (
        "from ghn_jax.runtime import commands\n"
        "with commands.errors_as_lines(): input(), print('x', flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        process.stdin.write("go on\n")
        process.stdin.close()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE


def test_output_that_is_closed_or_lacks_characters_is_no_error():
    program = (
        "from ghn_jax.runtime import commands, status\n"
        "with commands.errors_as_lines(): status.Status().say('1 ± 2 █')"
    )
    command = f'{sys.executable} -c "{program}"'
    closed = subprocess.run(["sh", "-c", f"{command} >&-"], capture_output=True, text=True)
    assert (closed.returncode, closed.stderr) == (0, "")
    plain = subprocess.run(["sh", "-c", f"PYTHONIOENCODING=ascii {command}"], capture_output=True, text=True)
    assert (plain.returncode, plain.stdout, plain.stderr) == (0, "1 \\xb1 2 \\u2588\n", "")


def test_another_pipe_that_breaks_is_one(capfd: pytest.CaptureFixture[str]):
    assert commands.report(BrokenPipeError(32, "Broken pipe", "/some/fifo")) == 2
    assert "/some/fifo" in capfd.readouterr().err


def test_a_package_that_is_not_installed_is_named(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ModuleNotFoundError) as missing:
        importlib.import_module("no_such_package.of_ours")
    assert commands.report(missing.value) == 2
    assert capsys.readouterr().err.startswith(
        "error: `no_such_package` is not installed: python -m pip install"
    )
    with pytest.raises(ModuleNotFoundError) as ours:
        importlib.import_module("ghn_jax.no_such_room")
    assert commands.report(ours.value) == 1
