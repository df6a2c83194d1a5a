"""Training and evaluation on a streamed set, by command, with a damaged image in it."""

import json
import pathlib
import shutil
import time

import jax
import numpy as np
import pytest
from commands_in_forks import Command, Forks
from image_sets import DAMAGED, encoded, picture, write_tfds

from ghn_jax.images.damage import DamageList
from ghn_jax.images.loading import load
from ghn_jax.training.feed import open_feed

STEPS = 3
TRAIN = ("python", "-m", "benchmarks.small_run")
OPTIONS = (
    "--dataset=tfds:tiny",
    "--meta_batch_size=1",
    "--batch_size=16",
    "--micro_batch_size=8",
    f"--steps={STEPS}",
    "--checkpoint_every=1",
    "--val_archs=0",
    "--log_every=1",
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Twelve classes of 32 x 32 pixels; image 7 of 80 is damaged."""
    images = [(encoded(picture(index, 32, 32)), index % 12) for index in range(80)]
    images[7] = (DAMAGED["garbage"], 7)
    path = tmp_path_factory.mktemp("data")
    write_tfds(path, {"train": images, "test": images[8:]}, 12, "tiny/1.0.0", shape=(32, 32, 3))
    return path


def metrics(workdir: pathlib.Path) -> list[dict]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: line[k] for k in ("step", "loss", "gradient_norm", "damaged_images")} for line in lines]


@pytest.fixture(scope="module")
def finished(forks: Forks, data_dir: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("run")
    done = forks.run(*TRAIN, *OPTIONS, f"--data_dir={data_dir}", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir


def test_too_few_held_out_images_are_an_error_before_training(forks: Forks, data_dir, tmp_path: pathlib.Path):
    done = forks.run(
        *TRAIN,
        *OPTIONS,
        "--val_archs=1",
        f"--data_dir={data_dir}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "`val_archs` (=1) need 64 held-out images" in line and "--val_archs=0" in line
    assert not (tmp_path / "run").exists()


def test_a_killed_run_goes_on_with_the_same_images(forks: Forks, finished, data_dir, tmp_path: pathlib.Path):
    arguments = (*OPTIONS, f"--data_dir={data_dir}", f"--workdir={tmp_path}")
    child = Command(forks, (*TRAIN, *arguments))
    while child.runs() and not (tmp_path / "checkpoints" / "1").exists():
        time.sleep(0.05)
    child.kill()
    resumed = forks.run(*TRAIN, *arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming" in resumed.stdout
    assert metrics(tmp_path) == metrics(finished)


def test_options_of_the_images_can_be_changed(forks: Forks, finished, data_dir, tmp_path: pathlib.Path):
    shutil.copytree(finished, tmp_path / "run")
    changed = (
        *OPTIONS,
        "--batch_size=8",
        "--steps=4",
        f"--data_dir={data_dir}",
        f"--workdir={tmp_path / 'run'}",
    )
    refused = forks.run(*TRAIN, *changed)
    assert refused.returncode == 2 and "--batch_size was 16, is 8" in refused.stderr
    resumed = forks.run(*TRAIN, *changed, "--change_options=True")
    assert resumed.returncode == 0, resumed.stderr
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4]


def test_evaluation_has_top_five(forks: Forks, finished, data_dir, tmp_path: pathlib.Path):
    results = tmp_path / "results.jsonl"
    done = forks.run(
        "python",
        "evaluate.py",
        f"--ckpt={finished}",
        f"--data_dir={data_dir}",
        "--num_archs=1",
        f"--results={results}",
    )
    assert done.returncode == 0, done.stderr
    assert "top-5" in done.stdout
    row = json.loads(results.read_text().splitlines()[-1])
    assert row["images"] == 72 and 0 <= row["top1"] <= row["top5"] <= 100


def test_checkpoint_for_other_classes_is_an_error(forks: Forks, finished):
    done = forks.run("python", "evaluate.py", f"--ckpt={finished}", "--dataset=digits")
    assert done.returncode == 2
    assert "predicts 12 classes" in done.stderr and "Traceback" not in done.stderr


def test_feed_goes_on_where_its_state_says(data_dir, tmp_path: pathlib.Path):
    dataset, key = load("tfds:tiny", data_dir), jax.random.key(0)
    state: dict = {}
    damaged = tmp_path / "damaged_images.txt"
    feed = open_feed(dataset, 16, key, 0, 0, state, 0, DamageList(damaged))
    batches = [feed(step) for step in range(6)]
    saved = json.loads(json.dumps(state))
    expected = [feed(step) for step in (6, 7)]
    feed.close()
    assert feed.damaged >= 1  # more than one epoch: the damaged image was met
    (line,) = damaged.read_text().splitlines()  # once, though met in two epochs
    assert "record 7 of train: " in line
    again = open_feed(dataset, 16, key, 0, 6, saved, 0, DamageList(damaged))
    for step, (images, labels) in zip((6, 7), expected, strict=True):
        same, classes = again(step)
        np.testing.assert_array_equal(same, images)
        np.testing.assert_array_equal(classes, labels)
    again.close()
    assert again.damaged == feed.damaged
    assert damaged.read_text() == line + "\n"
    assert batches[0][0].shape == (16, 32, 32, 3)
