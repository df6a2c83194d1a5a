"""Devices that are not there."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest

from ghn_jax.evaluation import report
from ghn_jax.evaluation.options import EvaluateOptions
from ghn_jax.finetuning import command
from ghn_jax.finetuning.options import FinetuneOptions
from ghn_jax.runtime import devices
from ghn_jax.studies import baselines, properties, search
from ghn_jax.training import loop
from ghn_jax.training.options import TrainOptions


def test_a_device_that_is_not_there_is_one_line():
    environment = os.environ | {"JAX_PLATFORMS": "cuda"}
    ended = subprocess.run([sys.executable, "-m", "ghn_jax"], env=environment, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: JAX_PLATFORMS (='cuda') names no device of this machine")
    assert ended.stderr.count("\n") == 1


class NoDevice(ValueError):
    pass


@pytest.mark.parametrize(
    "run",
    [
        lambda folder: loop.train(TrainOptions(workdir=folder / "run")),
        lambda folder: report.evaluate(EvaluateOptions()),
        lambda folder: command.run(FinetuneOptions(workdir=folder / "run")),
        lambda folder: baselines.baselines(baselines.BaselineOptions(results=folder / "results.jsonl")),
        lambda folder: search.search(search.SearchOptions(results=folder / "results.jsonl")),
        lambda folder: properties._main(properties.PropertyOptions(results=folder / "results.jsonl")),
    ],
    ids=["train", "evaluate", "finetune", "baselines", "search", "properties"],
)
def test_devices_are_looked_at_before_any_work(
    run: Callable[[pathlib.Path], None], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    def no_device() -> None:
        raise NoDevice

    monkeypatch.setattr(devices, "check", no_device)
    with pytest.raises(NoDevice):
        run(tmp_path)
    assert not list(tmp_path.iterdir())
