"""docs/faults.md says what commands say to faults: every command on it is run, from top to bottom in one folder."""

import functools
import itertools
import pathlib
import re
import shlex
import subprocess
from typing import NamedTuple

import pytest
from commands_in_forks import ENTRIES, Forks

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "faults.md").read_text()


class Shown(NamedTuple):
    """A command on the page, and what follows it there."""

    number: int
    command: str
    said: str

    def __str__(self) -> str:
        return self.command.replace("/", "|")


def commands() -> list[Shown]:
    found: list[Shown] = []
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Shown(len(found), line[2:], ""))
            else:
                assert not found[-1].said, f"a command says one line: {line}"
                found[-1] = found[-1]._replace(said=line)
    return found


@pytest.fixture(scope="module")
def outcomes(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str]]:
    """Exit code and text of each command."""
    folder = tmp_path_factory.mktemp("faults")
    models = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert models
    (folder / "models.py").write_text(models[1])
    return [outcome(shown.command, forks, folder) for shown in commands()]


def outcome(command: str, forks: Forks, folder: pathlib.Path) -> tuple[int, str]:
    """Exit code and text of a command of ghn_jax, or of a shell."""
    words = shlex.split(command)
    environment = dict(word.split("=", 1) for word in itertools.takewhile(lambda word: "=" in word, words))
    words = words[len(environment) :]
    if words[0] in ENTRIES or words[:2] == ["python", "-m"]:
        done = forks.run(*words, folder=folder, **environment)
    else:
        done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("shown", commands(), ids=str)
def test_what_a_command_says(shown: Shown, outcomes: list[tuple[int, str]]):
    code, text = outcomes[shown.number]
    lines = text.splitlines()
    pattern = re.compile(".*".join(map(re.escape, shown.said.split("..."))))
    assert not [line for line in lines if line.startswith("Traceback")], text
    if "error: " in shown.said:
        assert code == 2
        assert pattern.fullmatch(lines[-1]), lines[-1]
        assert sum("error: " in line for line in lines) == 1
    else:
        assert code == 0, text
        assert not shown.said or any(map(pattern.fullmatch, lines)), text


def test_there_are_many():
    assert sum("error: " in shown.said for shown in commands()) >= 80


@functools.cache
def names_of_tests(file: str) -> set[str]:
    return set(re.findall(r"^def (test_\w+)", (ROOT / file).read_text(), re.MULTILINE))


def test_faults_that_are_no_commands_have_tests():
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE)
    assert len(named) >= 10
    for file, test in named:
        assert test in names_of_tests(file), f"{file}::{test}"
