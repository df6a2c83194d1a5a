import json
import pathlib
from typing import Any

import numpy as np
import pytest
from commands_in_forks import Forks

pytest.importorskip("matplotlib")
from ghn_jax.plots import figures


def write(path: pathlib.Path, records: list[dict[str, Any]]) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"cut sho')
    return path


METRICS = [{"step": step, "loss": 1 / step, "top1": 10.0 + step} for step in range(1, 41)]
METRICS[4]["loss"] = None  # was not finite
METRICS.insert(20, {"step": 20, "val_top1": 17.5})

HEADER = {"ckpt": "runs/ghn2-digits", "dataset": "digits", "split": "deep"}
NETWORKS = [{"arch": str(index), "top1": top1} for index, top1 in enumerate([10.0, 30.0, 20.0])]


def test_training_is_drawn_as_it_was_written(tmp_path: pathlib.Path):
    losses, accuracies = figures.training_figure(write(tmp_path / "metrics.jsonl", METRICS)).axes
    steps, loss = losses.lines[0].get_data()
    finite = [step for step in range(1, 41) if step != 5]
    np.testing.assert_array_equal(steps, finite)
    np.testing.assert_allclose(np.asarray(loss), [1 / step for step in finite])
    np.testing.assert_array_equal(accuracies.lines[0].get_ydata(), np.arange(11.0, 51.0))
    np.testing.assert_array_equal(accuracies.lines[2].get_data(), ([20], [17.5]))


def test_running_median():
    np.testing.assert_array_equal(
        figures.running_median(np.array([1.0, 9.0, 2.0, 3.0]), 3), [1.0, 5.0, 2.0, 3.0]
    )


def test_evaluations_are_drawn_by_file(tmp_path: pathlib.Path):
    deep = write(tmp_path / "deep.jsonl", [HEADER, *NETWORKS])
    empty = write(tmp_path / "wide.jsonl", [HEADER | {"split": "wide"}])
    axes: list[Any] = figures.evaluation_figure([deep, empty]).axes
    first, second = axes
    assert first.get_title() == "deep, digits: 3 architectures"
    assert sum(bar.get_height() for bar in first.patches) == 3
    mean, best = first.lines
    assert mean.get_xdata()[0] == 20.0
    assert best.get_xdata()[0] == 30.0
    assert best.get_label() == "best 30.0 % at 1"
    assert second.get_title() == "wide, digits: nothing evaluated yet"


def test_command_finds_the_evaluations_of_a_run(forks: Forks, tmp_path: pathlib.Path):
    write(tmp_path / "runs" / "ghn2-digits" / "metrics.jsonl", METRICS)
    write(tmp_path / "runs" / "eval" / "ghn2-digits-digits-deep-seed0.jsonl", [HEADER, *NETWORKS])
    done = forks.run("python", "-m", "ghn_jax.plots", tmp_path / "runs" / "ghn2-digits", "--format=svg")
    assert done.returncode == 0, done.stderr
    written = [pathlib.Path(line) for line in done.stdout.splitlines()]
    assert [path.name for path in written] == ["training.svg", "evaluation.svg"]
    assert all("<svg" in path.read_text() for path in written)


def test_no_run_is_one_line(forks: Forks, tmp_path: pathlib.Path):
    done = forks.run("python", "-m", "ghn_jax.plots", tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr
        == f"error: `run` (='{tmp_path}') has no metrics.jsonl: give the work directory of a run\n"
    )
    seed = tmp_path / "random" / "seed0"
    seed.mkdir(parents=True)
    (seed / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "top1": 9.0}\n?\n')
    done = forks.run("python", "-m", "ghn_jax.plots", tmp_path)
    assert done.stderr.endswith(f"has no metrics.jsonl: give one in it, as '{seed}'\n")
    done = forks.run("python", "-m", "ghn_jax.plots", seed)
    assert done.stderr.endswith("its line 2 is no JSON object; remove that line, or give another file\n")
