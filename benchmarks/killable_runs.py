"""Training runs in processes that `benchmarks.faults` kills: each a fork of one in which everything is imported."""

import dataclasses
import importlib
import json
import multiprocessing
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

NETWORKS = {
    "published": "ghn_jax.training.loop",
    "small": "benchmarks.small_run",
    "made_up": "benchmarks.made_up_run",
}
"""Modules of training runs: all the real thing; with small networks; and with networks that are not computed."""

OPTIONS = (
    "--recipe=published",
    "--meta_batch_size=1",
    "--batch_size=16",
    "--checkpoint_every=1",
    "--log_every=1",
)
COMPARED = ("step", "loss", "top1", "gradient_norm", "val_top1")
CHANGES = ((os, "rename"), (os, "mkdir"), (os, "fsync"), (os, "unlink"), (os, "rmdir"))
"""What a save does to the disk, in steps that a kill can come between."""


class Runs:
    """Starts training runs, each a fork of a process in which everything is imported."""

    def __init__(self, options: Sequence[str], networks: str):
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # the process to be forked passes over sys.path
        self._options = tuple(options)
        self._preloaded = preloaded = NETWORKS[networks]
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([preloaded, "sklearn.datasets", "tyro", __name__])

    def start(self, workdir: pathlib.Path, *more: str, kill_at: int = 0) -> "Run":
        """Starts a run; `kill_at` ends it by -9 before that change on the disk."""
        log = workdir.with_name(workdir.name + ".log")
        arguments = [*self._options, f"--workdir={workdir}", *more]
        process = self._context.Process(target=_train, args=(arguments, log, self._preloaded, kill_at))
        process.start()
        return Run(process, log)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run in a process of its own, and what it prints."""

    process: Any
    log: pathlib.Path

    def signal(self, number: int) -> None:
        """Sends a signal to it alone."""
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def end(self, timeout: float = 900) -> int:
        """Its exit code, when it has ended; minus the signal that killed it."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"a run hangs: {self.log}")
        return self.process.exitcode

    def printed(self) -> str:
        """All of it, errors too."""
        return self.log.read_text() if self.log.exists() else ""


def _train(arguments: list[str], log: pathlib.Path, preloaded: str, kill_at: int) -> None:
    """The command train.py, in a fork."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["train.py", *arguments]
    if kill_at:
        _kill_before_change(kill_at)
    from ghn_jax.runtime import commands

    loop = importlib.import_module(preloaded)
    commands.run(loop.TrainOptions, loop.train)


def _kill_before_change(number: int) -> None:
    changes = 0

    def counted(change: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal changes
            changes += 1
            if changes == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*args, **kwargs)

        return call

    for module, name in CHANGES:
        setattr(module, name, counted(getattr(module, name)))


def metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """What two runs must agree in."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in COMPARED if name in line} for line in lines]
