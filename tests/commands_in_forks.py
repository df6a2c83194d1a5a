"""Runs commands in forks of a process that has imported everything: each starts at once instead of after five seconds.

That process takes requests from stdin, a JSON list a line: ["start", words, folder, environment, files of output and
errors] is answered by the number of the fork; ["poll" or "wait", number] by [exit code, whether it left processes
over], or null while it runs.
"""

import gc
import importlib
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
ENTRIES = {"ghn-train": "train", "ghn-evaluate": "evaluate", "ghn-finetune": "finetune"}
IMPORTED = (
    *("tyro", "optax", "orbax.checkpoint", "grain", "sklearn.datasets", "sklearn.svm", "PIL.Image", "h5py"),
    *("simplejpeg", "ghn_jax.training.loop", "ghn_jax.evaluation.report", "ghn_jax.finetuning.command"),
    *("ghn_jax.studies.search", "ghn_jax.studies.properties", "ghn_jax.plots.figures"),
    *("ghn_jax.pretrained.__main__", "ghn_jax.deepnets.stored", "datasets.images", "datasets.imagenet"),
    *("datasets.deepnets1m", "benchmarks.made_up_run", "ghn_jax.__main__"),
)


class Done(NamedTuple):
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


class Forks:
    """The process that is forked; it starts with the first command."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._said = tempfile.TemporaryDirectory()

    def ask(self, *request: Any) -> Any:
        """The answer to a request."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._process.stdin and self._process.stdout
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def run(self, *words: str | pathlib.Path, folder: pathlib.Path = ROOT, **environment: str) -> Done:
        """Runs a command to its end; arguments as of `Command`."""
        return Command(self, words, folder, environment).wait()

    def file(self) -> str:
        """A new file, for what a command says."""
        descriptor, name = tempfile.mkstemp(dir=self._said.name)
        os.close(descriptor)
        return name

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.communicate()
        self._said.cleanup()


class Command:
    """A command that runs."""

    def __init__(
        self,
        forks: Forks,
        words: tuple[str | pathlib.Path, ...],
        folder: pathlib.Path = ROOT,
        environment: dict[str, str] | None = None,
    ):
        """Starts it.

        Args:
          words: "python", then a script, -m and a module, or -c and code, and arguments; or an installed command of
            ghn_jax, of which ghn-train trains networks that are made up.
          folder: where.
          environment: variables to add, not those that jax reads when it is imported.
        """
        self._forks = forks
        self._ended: tuple[int, bool] | None = None
        self._files = [forks.file(), forks.file()]
        self._pid = forks.ask("start", list(map(str, words)), str(folder), environment or {}, self._files)

    def runs(self) -> bool:
        """Whether it has not ended."""
        self._ended = self._ended or self._forks.ask("poll", self._pid)
        return not self._ended

    def wait(self) -> Done:
        """Waits for its end."""
        code, left_over = self._ended = self._ended or self._forks.ask("wait", self._pid)
        done = Done(code, *(pathlib.Path(file).read_text() for file in self._files))
        assert not left_over, f"a process was left over: {done}"
        return done

    def kill(self) -> None:
        """Ends it as a machine that stops does."""
        assert self.runs(), self.wait()
        os.killpg(self._pid, signal.SIGKILL)
        assert self.wait().returncode == -signal.SIGKILL


# -- the process that is forked ------------------------------------------------------------------------------------


def main() -> None:
    """Answers requests."""
    sys.path.insert(0, str(ROOT))
    sys.argv = ["commands"]
    with warnings.catch_warnings(action="ignore"):
        for module in IMPORTED:
            importlib.import_module(module)
    gc.freeze()  # forks look for no garbage among what is shared
    for line in sys.stdin:
        match json.loads(line):
            case ["start", words, folder, environment, files]:
                answer = start(words, folder, environment, files)
            case ["poll", child]:
                answer = ended(child, os.WNOHANG)
            case ["wait", child]:
                answer = ended(child, 0)
            case other:
                raise AssertionError(other)
        print(json.dumps(answer), flush=True)


def start(words: list[str], folder: str, environment: dict[str, str], files: list[str]) -> int:
    """Forks this process; the fork runs the command."""
    with warnings.catch_warnings(action="ignore"):  # of threads, none of which a fork here needs
        child = os.fork()
    if child:
        return child
    os.setsid()
    os.chdir(folder)
    os.environ |= environment
    for descriptor, file in enumerate((os.devnull, *files)):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND), descriptor)
    code = 0
    try:
        run(words)
    except SystemExit as exited:
        code = exited.code if isinstance(exited.code, int) else int(exited.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(words: list[str]) -> None:
    """The command, in this process."""
    if words[0] in ENTRIES:
        if words[0] == "ghn-train":
            importlib.import_module("benchmarks.made_up_run").install()
        sys.argv = words
        getattr(importlib.import_module("ghn_jax.__main__"), ENTRIES[words[0]])()
        return
    python, first, *_ = words
    assert python == "python"
    if first == "-m":
        sys.argv = words[2:]
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *words[3:]]
        exec(words[2], {"__name__": "__main__"})
    else:
        sys.argv = words[1:]
        runpy.run_path(first, run_name="__main__")


def ended(child: int, options: int) -> tuple[int, bool] | None:
    """The exit code of a fork, and whether it left processes over; these are ended. None while it runs."""
    pid, status = os.waitpid(child, options)
    if not pid:
        return None
    try:
        os.killpg(child, signal.SIGKILL)
        left_over = True
    except ProcessLookupError:
        left_over = False
    return os.waitstatus_to_exitcode(status), left_over


if __name__ == "__main__":
    main()
