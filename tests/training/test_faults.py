"""Runs under faults, as `python -m benchmarks.faults` makes them by the hundred, with networks that are made up."""

import collections
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from benchmarks import faults
from benchmarks import made_up_run as tiny_run
from ghn_jax.images.resident import ImageDataset
from ghn_jax.runtime import signals
from ghn_jax.training import checkpoint, loop
from ghn_jax.training.options import TrainOptions
from ghn_jax.training.workdir import MetricsFile, locked

STEPS = 4


@pytest.fixture(scope="module")
def runs() -> faults.Runs:
    return faults.Runs((*faults.OPTIONS, f"--steps={STEPS}", "--val_archs=1"), "made_up")


def test_the_same_metrics_after_faults_of_every_kind(runs: faults.Runs, tmp_path: pathlib.Path):
    options = faults.Options(tmp_path, kills=1, kills_in_saves=1, sigterms=1, fills=1, damages=1, pairs=1)
    counts = faults.inject(options, runs)
    assert {outcome for _, outcome in counts} <= {"same", "refused", "left out"}, counts
    assert collections.Counter(kind for kind, _ in counts.elements()).total() >= 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_the_step_and_says_how_to_go_on(
    number: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """In this process: the signal comes within step 2."""
    tiny_run.install(monkeypatch.setattr)
    step = tiny_run.Tiny.step

    def signalled(self, state, *others):
        if int(state.step[0]) == 1:
            os.kill(os.getpid(), number)
        return step(self, state, *others)

    monkeypatch.setattr(tiny_run.Tiny, "step", signalled)
    with pytest.raises(signals.Interrupted, match="saved after step 2; the same command goes on") as ended:
        loop.train(options(tmp_path))
    assert ended.value.code == 128 + number
    assert checkpoint.RunCheckpoints(tmp_path).latest_step() == 2
    monkeypatch.setattr(tiny_run.Tiny, "step", step)
    loop.train(options(tmp_path))
    loop.train(options(tmp_path / "uninterrupted"))
    assert faults.metrics(tmp_path) == faults.metrics(tmp_path / "uninterrupted")


def test_a_second_signal_ends_at_once():
    program = "import os, signal; from ghn_jax.runtime import signals\n"
    program += "with signals.noted('ending'): [os.kill(os.getpid(), signal.SIGTERM) for _ in range(2)]"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (143, "ending\n")


def options(workdir: pathlib.Path, **more) -> TrainOptions:
    every_step = TrainOptions(meta_batch_size=1, batch_size=16, steps=4, checkpoint_every=1, val_archs=1)
    return dataclasses.replace(every_step, recipe="published", workdir=workdir, **more)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_run.install(monkeypatch.setattr)


def test_validation_that_a_signal_put_off_follows_at_the_next_start(
    tiny, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    loop.train(options(tmp_path / "expected", steps=2))
    monkeypatch.setattr(tiny_run.loop.processes, "largest", lambda _: signal.SIGTERM)
    with pytest.raises(signals.Interrupted):
        loop.train(options(tmp_path / "run"))
    assert "val_top1" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    monkeypatch.undo()
    tiny_run.install(monkeypatch.setattr)
    loop.train(options(tmp_path / "run", steps=2))
    assert faults.metrics(tmp_path / "run") == faults.metrics(tmp_path / "expected")


def test_skipped_steps_are_not_kept_and_the_remedy_works(
    tiny, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """From step 3 on no loss is finite: what was saved after step 2 has diverged already."""
    monkeypatch.setattr(tiny_run, "NOT_FINITE", {2, 3, 4, 5})
    with pytest.raises(loop.NonFiniteLoss, match=r"checkpoint 2 is diverged.*lower\s+--learning_rate"):
        loop.train(options(tmp_path, max_skipped=2))
    assert [line["loss"] is None for line in lines(tmp_path) if "loss" in line] == [False, False, True, True]
    monkeypatch.setattr(tiny_run, "NOT_FINITE", set())
    loop.train(options(tmp_path, learning_rate=1e-4, change_options=True))
    assert faults.metrics(tmp_path)[-1]["step"] == 4


def lines(workdir: pathlib.Path) -> list[dict]:
    def no_constant(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=no_constant) for line in text.splitlines()]


def test_seconds_and_compilations_go_on(tiny, tmp_path: pathlib.Path):
    for steps in (2, 4):
        loop.train(options(tmp_path, steps=steps))
    for name in ("seconds", "compilations", "compilation_seconds"):
        values = [line[name] for line in lines(tmp_path) if name in line]
        assert values == sorted(values) and len(values) == 4


def test_a_full_disk_is_an_error_and_then_none(tiny, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    loop.train(options(tmp_path / "expected"))
    for place in ("runs.checksums", "runs.checkpointer", "_on_disk"):
        with monkeypatch.context() as patch:
            patch.setattr(f"ghn_jax.training.checkpoint.{place}", full)
            with pytest.raises(OSError, match=r"No space left on device.* which begins again"):
                loop.train(options(tmp_path / "run"))
    loop.train(options(tmp_path / "run", steps=2))
    with monkeypatch.context() as patch:
        patch.setattr("ghn_jax.training.checkpoint._on_disk", full)
        with pytest.raises(OSError, match=r"No space left on device.* which goes on from step 2"):
            loop.train(options(tmp_path / "run"))
    loop.train(options(tmp_path / "run"))
    assert faults.metrics(tmp_path / "run") == faults.metrics(tmp_path / "expected")


def test_two_runs_in_a_directory(tmp_path: pathlib.Path):
    in_use = pytest.raises(ValueError, match=rf"in use by process {os.getpid()} on .*another --workdir")
    with locked(tmp_path), in_use:
        loop.train(options(tmp_path))
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("text", ['{"step": 1, "loss": 2.0}\n', "other\n", "[1]\n", '{"epoch": 1}'])
def test_the_metrics_of_others_are_left_alone(tiny, text: str, tmp_path: pathlib.Path):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match="no checkpoint that goes with it: give another --workdir"):
        loop.train(options(tmp_path))
    assert (tmp_path / "metrics.jsonl").read_text() == text


@pytest.mark.parametrize("how", ["cut", "garbled", "another"])
def test_damaged_metrics_are_refused_and_the_remedy_works(tiny, how: str, tmp_path: pathlib.Path):
    loop.train(options(tmp_path, steps=2))
    path = tmp_path / "metrics.jsonl"
    text = path.read_bytes()
    changed = {"cut": text[:-40], "garbled": text.replace(b"1", b"2"), "another": b"[1]\n" * 99}[how]
    path.write_bytes(changed)
    with pytest.raises(ValueError, match="move it away"):
        loop.train(options(tmp_path))
    assert path.read_bytes() == changed
    path.unlink()
    loop.train(options(tmp_path))
    assert [line["step"] for line in faults.metrics(tmp_path)] == [3, 3, 4, 4]


def test_a_mark_is_of_the_lines_so_far(tmp_path: pathlib.Path):
    file = MetricsFile(tmp_path / "m.jsonl", None)
    file.write(step=1, loss=float("inf"))
    mark = file.mark()
    file.write(step=2, loss=1.0)
    file.close()
    again = MetricsFile(tmp_path / "m.jsonl", mark)
    again.close()
    assert (tmp_path / "m.jsonl").read_text() == '{"step": 1, "loss": null}\n'


def test_other_images_stop_a_resume(tiny, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    loop.train(options(tmp_path, steps=2))
    digits = loop.load("digits", None, 16)
    assert isinstance(digits, ImageDataset)
    images = digits.train.images.copy()
    images[0] = 0
    other = dataclasses.replace(digits, train=dataclasses.replace(digits.train, images=images))
    monkeypatch.setattr(loop, "load", lambda *_: other)
    with pytest.raises(ValueError, match=r"on other images \(images were replaced.*--change_options=True"):
        loop.train(options(tmp_path))
    loop.train(options(tmp_path, change_options=True))
    assert faults.metrics(tmp_path)[-1]["step"] == 4
