"""The commands, as a user runs them: train, be killed, resume, evaluate, and be told what is wrong."""

import json
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from commands_in_forks import Command, Done, Forks

from ghn_jax import pretrained
from ghn_jax.training import loop, meta
from ghn_jax.training.options import TrainOptions

STEPS = 2
SMALL = [
    "--meta_batch_size=1",
    "--batch_size=16",
    f"--steps={STEPS}",
    "--checkpoint_every=1",
    "--val_archs=0",
    "--log_every=1",
]


TWO_DEVICES = "--xla_force_host_platform_device_count=2"


def run_alone(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as a user does; others are forks, which start sooner."""
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)


def metrics(workdir: pathlib.Path) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: json.loads(line)[k] for k in ("step", "loss", "top1", "gradient_norm")} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("run")
    done = run_alone("train.py", *SMALL, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert f"step {STEPS}/{STEPS}" in done.stdout
    assert "ETA" in done.stdout
    assert "compilations" in done.stdout
    assert f"next: python evaluate.py --ckpt={workdir}" in done.stdout
    assert (workdir / "training.png").exists()
    return workdir


def test_a_killed_run_resumes_to_the_same_metrics(
    forks: Forks, finished: pathlib.Path, tmp_path: pathlib.Path
):
    child = Command(forks, ("python", "train.py", *SMALL, f"--workdir={tmp_path}"))
    file = tmp_path / "metrics.jsonl"
    while child.runs() and not (file.exists() and file.read_text().count("\n") == 1):
        time.sleep(0.05)
    child.kill()
    resumed = forks.run("python", "train.py", *SMALL, f"--workdir={tmp_path}")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming" in resumed.stdout
    assert metrics(tmp_path) == metrics(finished)


def test_a_meta_batch_that_does_not_divide_is_an_error(forks: Forks, tmp_path: pathlib.Path):
    done = forks.run(
        "python", "train.py", "--meta_batch_size=3", f"--workdir={tmp_path / 'run'}", XLA_FLAGS=TWO_DEVICES
    )
    assert_one_line_error(done, "choose a multiple of 2")


def test_a_network_too_large_for_memory_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    def accumulate(*_: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(meta.run, "accumulate", accumulate)
    options = TrainOptions(meta_batch_size=1, batch_size=16, steps=1, val_archs=0, workdir=tmp_path)
    with pytest.raises(
        ValueError, match=r"batch_size.*=16.*lower it.*architecture \d+ of the split train, step 1"
    ):
        loop.train(options)


def test_networks_train_in_bfloat16(finished: pathlib.Path, tmp_path: pathlib.Path):
    options = TrainOptions(
        meta_batch_size=1, batch_size=16, steps=1, val_archs=0, precision="bfloat16", workdir=tmp_path
    )
    loop.train(options)
    (rough,), exact = metrics(tmp_path), metrics(finished)[0]
    assert rough["loss"] == pytest.approx(exact["loss"], rel=0.02)
    assert rough["loss"] != exact["loss"]


def test_validation_agrees_with_evaluation(forks: Forks, tmp_path: pathlib.Path):
    """The one runs networks side by side, the other one after the other."""
    loop.train(TrainOptions(meta_batch_size=1, batch_size=16, steps=1, val_archs=2, workdir=tmp_path))
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    results = tmp_path / "results.jsonl"
    done = forks.run(
        "python", "evaluate.py", f"--ckpt={tmp_path}", "--split=val", "--num_archs=2", f"--results={results}"
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in results.read_text().splitlines()[1:]]
    assert last["val_top1"] == pytest.approx(sum(row["top1"] for row in rows) / 2, abs=0.4)  # an image


def test_a_run_starts_from_the_weights_of_another(finished: pathlib.Path, tmp_path: pathlib.Path):
    small = {"meta_batch_size": 1, "batch_size": 16, "steps": 1, "val_archs": 0, "workdir": tmp_path}
    loop.train(TrainOptions(init=str(finished), learning_rate=1e-12, **small))
    first, second = pretrained.load(finished), pretrained.load(tmp_path)
    for one, other in zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-6)
    assert second.info["before"] == first.info
    with pytest.raises(ValueError, match=r"--init was .*, is None"):
        loop.train(TrainOptions(**small, learning_rate=1e-12))


def test_training_again_when_done_changes_nothing(forks: Forks, finished: pathlib.Path):
    before = metrics(finished)
    assert forks.run("python", "train.py", *SMALL, f"--workdir={finished}").returncode == 0
    assert metrics(finished) == before


def test_evaluation_goes_on_where_it_stopped(forks: Forks, finished: pathlib.Path, tmp_path: pathlib.Path):
    results = tmp_path / "results.jsonl"
    arguments = [f"--ckpt={finished}", "--split=val", "--channels=32", f"--results={results}"]
    first = forks.run("python", "evaluate.py", *arguments, "--num_archs=1")
    assert first.returncode == 0, first.stderr
    assert f"trained for {STEPS} steps on digits" in first.stdout
    assert not (finished / "evaluation.png").exists()  # results of another place are not drawn
    results.write_text(results.read_text() + '{"arch": "1", "par')  # cut short by a kill
    second = forks.run("python", "evaluate.py", *arguments, "--num_archs=2")
    assert second.returncode == 0, second.stderr
    records = [json.loads(line) for line in results.read_text().splitlines()]
    assert [record.get("arch") for record in records] == [None, "0", "1"]
    assert records[0]["images"] == 143
    assert all(0 <= record["top1"] <= 100 for record in records[1:])
    assert "(mean ± standard error of 2)" in second.stdout


BAD_TRAINING = {
    "dataset": (["--dataset=cifar01"], "did you mean 'cifar10'"),
    "preset": (["--preset=ghn3"], "did you mean 'ghn"),
    "executor": (["--executor=block"], "did you mean 'blocks'"),
    "micro_batch_size": (["--executor=fused", "--micro_batch_size=8"], "is for the executor blocks"),
    "precision": (["--precision=float16"], "did you mean 'bfloat16'"),
    "precision of fused": (["--executor=fused", "--precision=bfloat16"], "is for the executor blocks"),
    "data_dir": (["--dataset=cifar10", "--data_dir=/no/such"], "datasets.images prepare cifar10"),
    "no data_dir": (["--dataset=cifar10"], "datasets.images prepare cifar10"),
    "batch_size": (["--batch_size=100000"], "exceeds"),
    "steps": (["--steps=0"], "at least 1"),
    "label_smoothing": (["--label_smoothing=1.5"], "in 0..1"),
    "num_workers": (["--num_workers=-1"], "not be negative"),
    "process_id": (["--process_id=1"], "need `coordinator`"),
    "learning_rate": (["--learning_rate=nan"], "positive"),
    "init": (["--init=ghn2-digit"], "did you mean 'ghn2-digits'"),
    "init of another GHN": (["--preset=ghn1", "--init=ghn2-digits"], "virtual_edges was True, is False"),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_bad_training_options(forks: Forks, case: str, tmp_path: pathlib.Path):
    arguments, remedy = BAD_TRAINING[case]
    assert_one_line_error(
        forks.run("python", "train.py", *arguments, f"--workdir={tmp_path / 'run'}"), remedy
    )
    assert not (tmp_path / "run").exists()


def test_resuming_with_other_options_is_an_error(forks: Forks, finished: pathlib.Path):
    before = metrics(finished)
    other = (*SMALL, "--learning_rate=0.1", f"--workdir={finished}")
    assert_one_line_error(forks.run("python", "train.py", *other), "--learning_rate was 0.01")
    assert forks.run("python", "train.py", *other, "--change_options=True").returncode == 0
    assert metrics(finished) == before


BAD_EVALUATION = {
    "arch": (["--arch=resnet51"], "did you mean 'resnet50'"),
    "split": (["--split=tset"], "did you mean 'test'"),
    "index": (["--split=test", "--arch=500"], "from 0 to 499"),
    "dataset": (["--dataset=digit"], "did you mean 'digits'"),
    "ckpt": (["--ckpt=no-such-ghn"], "no-such-ghn"),
    "channels": (["--channels=20"], "multiple of 16"),
}


@pytest.mark.parametrize("case", BAD_EVALUATION)
def test_bad_evaluation_options(forks: Forks, case: str, finished: pathlib.Path, tmp_path: pathlib.Path):
    arguments, remedy = BAD_EVALUATION[case]
    results = tmp_path / "results.jsonl"
    assert_one_line_error(
        forks.run("python", "evaluate.py", f"--ckpt={finished}", *arguments, f"--results={results}"), remedy
    )
    assert not results.exists()


def assert_one_line_error(done: Done, remedy: str) -> None:
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert remedy in done.stderr


@pytest.mark.parametrize(
    ("num_train", "num_val", "batch_size", "val_archs"),
    [(162, 18, 16, 0), (45_000, 5000, 256, 4), (5, 64, 1, 4), (1294, 143, 128, 4)],
)
def test_defaults_follow_the_size_of_the_set(num_train, num_val, batch_size, val_archs):
    options = TrainOptions(dataset="folder:small").resolve().fitted(num_train, num_val, 64)
    assert (options.batch_size, options.val_archs, options.image_size) == (batch_size, val_archs, 64)


def test_options_that_a_small_set_does_not_allow_are_errors():
    options = TrainOptions(dataset="folder:small", micro_batch_size=5).resolve()
    with pytest.raises(ValueError, match=r"`micro_batch_size` \(=5\) must divide the batch size, 16"):
        options.fitted(162, 18)
    with pytest.raises(
        ValueError, match=r"`image_size` \(=100\) must be 16, or a multiple of 32 .*: choose 96"
    ):
        TrainOptions(image_size=100).resolve()
    with pytest.raises(ValueError, match=r"`batch_size` \(=64\) exceeds the 50 training images"):
        TrainOptions(dataset="cifar10").resolve().fitted(50, 0)
