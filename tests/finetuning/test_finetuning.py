"""Fine-tuning as a user does it: an own model, killed and resumed, on several devices, and told what is wrong."""

import dataclasses
import json
import os
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands_in_forks import Command, Forks
from flax import linen as nn

import ghn_jax
from ghn_jax.finetuning import command, loop
from ghn_jax.finetuning.classifier import classifier
from ghn_jax.finetuning.data import make_data
from ghn_jax.finetuning.options import FinetuneOptions
from ghn_jax.finetuning.recipe import Recipe
from ghn_jax.runtime import signals
from ghn_jax.training.workdir import locked
from tests.image_sets import write_folder

LINEN = """
from flax import linen as nn

class Small(nn.Module):
    classes: int = 10

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3), strides=4)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(self.classes)(x.mean((1, 2)))

def make():
    return Small()
"""
NNX = """
from flax import nnx

class Small(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), strides=4, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(8, 9, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(nnx.relu(self.norm(self.conv(x)))).mean((1, 2)))

def make(rngs):
    return Small(rngs)
"""


class Small(nn.Module):
    """The same as in LINEN, here."""

    classes: int = 10

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(8, (3, 3), strides=4)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(self.classes)(x.mean((1, 2)))


def arrays(num: int = 96, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(num) % classes
    noise = np.random.default_rng(0).standard_normal((num, 8, 8, 3)).astype(np.float32)
    return noise + labels[:, None, None, None], labels


def losses(workdir: pathlib.Path) -> list[float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("model") / "small_linen.py"
    path.write_text(LINEN)
    return path


def small_options(model_file: pathlib.Path, workdir: pathlib.Path) -> FinetuneOptions:
    return FinetuneOptions(
        arch=f"{model_file}:make",
        init="ghn2-digits",
        steps=40,
        batch_size=16,
        checkpoint_every=4,
        workdir=workdir,
    )


@pytest.fixture(scope="module")
def finished(model_file: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("whole")
    command.run(small_options(model_file, workdir))
    return workdir


class News:
    """Keeps what a run tells."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.lines: list[str] = []

    def doing(self, what: Callable[[], str] | str) -> None:
        self.told.append(what() if callable(what) else what)

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_a_run_tells_what_it_does_from_the_start():
    news, recipe = News(), Recipe(steps=2, batch_size=32, evaluate_at=(0, 2))
    data = make_data(arrays(), arrays(64))
    loop.train(Small(), data, "ghn2-digits", recipe, None, 500, 50, news, identity={})
    stages = ["making the start ghn2-digits", "filling in running statistics", "step 1/2: compiling it"]
    stages += ["testing after step 0", "step 1/2: compiling it", "testing after step 1", "step 2/2"]
    stages += ["testing after step 2", "step 2/2"]
    assert [text.split(",")[0] for text in news.told] == stages


def start_command(forks: Forks, model_file: pathlib.Path, workdir: pathlib.Path, devices: int) -> Command:
    options = [f"--arch={model_file}:make", "--init=ghn2-digits", "--steps=40", "--batch_size=16"]
    script = ("python", "-m", "ghn_jax.finetune", *options, "--checkpoint_every=4", f"--workdir={workdir}")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return Command(forks, script, environment={"XLA_FLAGS": flags})


def test_killed_on_two_devices_and_resumed_on_one_gives_the_same_losses(
    forks: Forks, finished: pathlib.Path, model_file: pathlib.Path, tmp_path: pathlib.Path
):
    child = start_command(forks, model_file, tmp_path, devices=2)
    part = pathlib.Path("ghn2-digits", "seed0")
    file = tmp_path / part / "metrics.jsonl"
    while child.runs() and not (file.exists() and file.read_text().count("loss") > 10):
        time.sleep(0.02)
    child.kill()
    whole = losses(finished / part)
    assert 10 < len(losses(tmp_path / part)) < len(whole) == 40
    np.testing.assert_allclose(losses(tmp_path / part), whole[: len(losses(tmp_path / part))], atol=1e-5)
    command.run(small_options(model_file, tmp_path))
    np.testing.assert_allclose(losses(tmp_path / part), whole, atol=1e-5)


def test_resuming_changes_nothing_at_all(finished: pathlib.Path, tmp_path: pathlib.Path):
    data, recipe = arrays(), Recipe(steps=8, batch_size=16)
    whole = loop.finetune(Small(), data, data, recipe=recipe, workdir=tmp_path / "a")

    def stop(text: str) -> None:
        if text.startswith("step 6/8"):
            raise KeyboardInterrupt

    every = {"workdir": tmp_path / "b", "checkpoint_every": 3, "log_every": 1}
    with pytest.raises(KeyboardInterrupt):
        loop.finetune(Small(), data, data, recipe=recipe, say=stop, **every)
    again = loop.finetune(Small(), data, data, recipe=recipe, **every)
    assert losses(tmp_path / "b") == losses(tmp_path / "a")
    assert again.tested == whole.tested
    jax.tree.map(np.testing.assert_array_equal, again.variables, whole.variables)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_that_runs_and_says_how_to_go_on(number: int, tmp_path: pathlib.Path):
    data, recipe = arrays(), Recipe(steps=4, batch_size=16)
    whole = loop.finetune(Small(), data, recipe=recipe)

    def ask(text: str) -> None:
        if text.startswith("step 1/4"):
            os.kill(os.getpid(), number)

    every = {"recipe": recipe, "workdir": tmp_path, "log_every": 1}
    with pytest.raises(signals.Interrupted, match="saved after step 1; the same command goes on") as ended:
        loop.finetune(Small(), data, say=ask, **every)
    assert ended.value.code == 128 + number
    lines: list[str] = []
    again = loop.finetune(Small(), data, say=lines.append, **every)
    assert "after step 1" in lines[0] and "steps 1 to 4 of 16 images" in lines[1]
    jax.tree.map(np.testing.assert_array_equal, again.variables, whole.variables)


def test_two_runs_do_not_share_a_directory(tmp_path: pathlib.Path):
    with locked(tmp_path), pytest.raises(ValueError, match=r"`workdir` .* is in use by process"):
        loop.finetune(Small(), arrays(), recipe=Recipe(steps=1), workdir=tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_images_and_network_are_of_the_size_asked_for(
    model_file: pathlib.Path, tmp_path: pathlib.Path, capsys
):
    options = dataclasses.replace(small_options(model_file, tmp_path), init="random", steps=1, image_size=32)
    command.run(options)
    assert "of 10 classes at 32 pixels" in capsys.readouterr().out
    with pytest.raises(ValueError, match="image_size was 32, is 16"):
        command.run(dataclasses.replace(options, image_size=16))


def test_a_finished_run_is_only_read(finished: pathlib.Path, model_file: pathlib.Path):
    before = (finished / "table.json").read_text()
    command.run(small_options(model_file, finished))
    assert (finished / "table.json").read_text() == before


def test_nnx_from_a_file_on_a_folder_of_nine_classes(tmp_path: pathlib.Path):
    (tmp_path / "small_nnx.py").write_text(NNX)
    classes = {f"c{i}": 12 for i in range(9)}
    write_folder(tmp_path / "set", {"train": classes, "test": {name: 8 for name in classes}})
    options = FinetuneOptions(
        arch=f"{tmp_path / 'small_nnx.py'}:make",
        dataset=f"folder:{tmp_path / 'set'}",
        shots=4,
        compare="random,ghn2-digits",
        epochs=10,
        batch_size=9,
        learning_rate=0.1,
        workdir=tmp_path / "run",
    )
    command.run(options)
    table = json.loads((tmp_path / "run" / "table.json").read_text())
    for start in ("random", "ghn2-digits"):
        assert [test["step"] for test in table[start]["0"]] == [0, 5, 10, 20, 40]
        values = losses(tmp_path / "run" / start / "seed0")
        assert np.mean(values[-8:]) < np.mean(values[:8])


def test_running_statistics_follow_the_images():
    images, labels = arrays()
    shifted = 5 + images
    trained = loop.finetune(
        Small(), (shifted, labels), recipe=Recipe(steps=30, batch_size=48, learning_rate=1e-4)
    )
    wanted = ghn_jax.fill_running_statistics(Small(), trained.variables, jnp.asarray(shifted))
    for kept, own in zip(
        jax.tree.leaves(trained.variables["batch_stats"]), jax.tree.leaves(wanted["batch_stats"]), strict=True
    ):
        np.testing.assert_allclose(kept, own, rtol=0.15, atol=0.15)


def test_learns_with_adamw_in_bfloat16_from_own_arrays_and_goes_on_from_it(tmp_path: pathlib.Path):
    data = arrays()
    recipe = Recipe(
        optimizer="adamw",
        learning_rate=0.1,
        warmup_steps=2,
        label_smoothing=0.1,
        precision="bfloat16",
        steps=60,
    )
    trained = loop.finetune(Small(), data, data, recipe=recipe, workdir=tmp_path)
    assert trained.tested[-1].top1 > 40 > trained.tested[0].top1
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(trained.variables)}
    assert dtypes == {np.dtype("float32")}
    once = Recipe(steps=1)
    assert loop.finetune(Small(), data, data, init=tmp_path, recipe=once).tested[0].top1 > 40
    fewer = loop.finetune(Small(classes=3), arrays(classes=3), init=tmp_path, recipe=once)
    assert "another number of classes" in fewer.notes[0]
    with pytest.raises(ValueError, match=r"`init`.*another model"):
        loop.finetune(nn.Dense(10), (data[0][:, 0, 0], data[1]), init=tmp_path, recipe=once)


def test_noise_and_orthogonalisation_leave_the_last_layer(tmp_path: pathlib.Path):
    data = arrays()
    plain = loop.finetune(Small(), data, init="ghn2-digits", recipe=Recipe(steps=1, learning_rate=1e-9))
    changed = loop.finetune(
        Small(),
        data,
        init="ghn2-digits",
        recipe=Recipe(steps=1, learning_rate=1e-9, noise=1e-5, orthogonal=True),
    )
    kernel = np.asarray(changed.variables["params"]["Conv_0"]["kernel"]).reshape(27, 8)
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(8), atol=1e-4)
    for result in (plain, changed):
        np.testing.assert_allclose(
            result.variables["params"]["Dense_0"]["kernel"],
            plain.variables["params"]["Dense_0"]["kernel"],
            atol=1e-6,
        )


class Attributed(nn.Module):
    """A model that an attribute puts in training."""

    training: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=not self.training)(x.mean((1, 2)))
        return nn.Dense(10)(x)


def test_attributes_too_put_a_model_in_training_and_in_evaluation():
    network = classifier(Attributed(), jax.ShapeDtypeStruct((1, 8, 8, 3), np.dtype("float32")))
    params, state = network.split(network.draw(jax.random.key(0)))
    images = 3 + jnp.asarray(arrays(16)[0])
    _, changed = network.apply(params, state, images, jax.random.key(1))
    assert (changed["batch_stats"]["BatchNorm_0"]["mean"] > 0).all()
    alone = network.evaluate(params, state, images[:1])
    np.testing.assert_allclose(alone, network.evaluate(params, state, images)[:1], rtol=1e-5)


class Bare(nn.Module):
    """Without parameters."""

    @nn.compact
    def __call__(self, x):
        return x.mean((1, 2))


def run_small(**changes: Any) -> None:
    loop.finetune(Small(), arrays(), recipe=dataclasses.replace(Recipe(steps=2), **changes))


BAD = {
    "optimizer": lambda tmp: run_small(optimizer="sdg"),
    "batch_size": lambda tmp: run_small(batch_size=97),
    "warmup_steps": lambda tmp: run_small(warmup_steps=2),
    "evaluate_at": lambda tmp: run_small(evaluate_at=(3,)),
    "label_smoothing": lambda tmp: run_small(label_smoothing=1.0),
    "no parameters": lambda tmp: loop.finetune(Bare(), arrays(classes=3)),
    "10 logits and the images have 12 classes": lambda tmp: loop.finetune(Small(), arrays(classes=12)),
    "`steps` .*must be given": lambda tmp: loop.finetune(Small(), iter([arrays(16)])),
    "ended after 2 batches": lambda tmp: loop.finetune(
        Small(), iter([arrays(16)] * 2), recipe=Recipe(steps=3)
    ),
    "`data` has no batch": lambda tmp: loop.finetune(Small(), iter([]), recipe=Recipe(steps=3)),
    "`data` has images of shape": lambda tmp: loop.finetune(Small(), (arrays()[0], arrays()[1][:5])),
    "`init`.*unknown": lambda tmp: loop.finetune(Small(), arrays(), init="ghn9", recipe=Recipe(steps=2)),
    "holds another run.*learning_rate": lambda tmp: [
        loop.finetune(Small(), arrays(), recipe=Recipe(steps=1, learning_rate=rate), workdir=tmp)
        for rate in (0.1, 0.2)
    ],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message: str, tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match=message):
        BAD[message](tmp_path)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint_before(tmp_path: pathlib.Path):
    images, labels = arrays(16)
    batches = [(images, labels)] * 5 + [(np.full_like(images, 3e38), labels)]
    recipe = Recipe(steps=6)
    with pytest.raises(loop.NonFiniteLoss, match=r"not finite at step 6.*`learning_rate`"):
        loop.finetune(Small(), batches, recipe=recipe, workdir=tmp_path, checkpoint_every=5)
    mended = [(images, labels)] * 6
    lines: list[str] = []
    loop.finetune(Small(), mended, recipe=recipe, workdir=tmp_path, say=lines.append)
    assert any("after step 5" in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "resnet19"}, "did you mean 'resnet18'"),
        ({"arch": "500"}, "outside the split"),
        ({"arch": "no/file.py:make"}, "`arch`.*cannot be imported"),
        ({"image_size": 20}, "`image_size` .*choose 32"),
        ({"shots": 1000}, "`shots` .=1000. exceeds the"),
        ({"compare": "random", "init": "ghn2-digits"}, "give one of them"),
        ({"picture": pathlib.Path("curve.doc")}, "`picture`"),
        ({"channels": 20, "arch": "3"}, "`channels`"),
    ],
)
def test_bad_options_are_named(changes: dict, message: str, tmp_path: pathlib.Path):
    options = dataclasses.replace(FinetuneOptions(workdir=tmp_path), **changes)
    with pytest.raises(ValueError, match=message):
        command.run(options)
