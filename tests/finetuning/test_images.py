"""Fine-tuning knows its images: others are refused, damaged ones told, and few are enough."""

import pathlib
import re
import runpy
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import numpy as np
import pytest

from ghn_jax.finetuning import loop
from ghn_jax.finetuning.recipe import Recipe
from ghn_jax.images.sources import open_dataset
from tests.image_sets import DAMAGED, write_folder


class Small(nn.Module):
    """Of three classes."""

    kernel: int = 3
    activation: Callable[[Any], Any] = nn.relu

    @nn.compact
    def __call__(self, x):
        x = self.activation(nn.Conv(4, (self.kernel, self.kernel), strides=4)(x))
        return nn.Dense(3)(x.mean((1, 2)))


def arrays(num: int = 12) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).standard_normal((num, 8, 8, 3)).astype(np.float32)
    return images, np.arange(num) % 3


def finetune(
    data: Any,
    *others: Any,
    steps: int = 1,
    model: nn.Module | None = None,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    recipe = Recipe(steps=steps, batch_size=4, **settings or {})
    return loop.finetune(model or Small(), data, *others, recipe=recipe, **options)


def test_a_run_does_not_go_on_with_other_images_or_another_start(tmp_path: pathlib.Path):
    images, labels = arrays()
    finetune((images, labels), workdir=tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds another run \(its images were others\)"):
        finetune((images, (labels + 1) % 3), workdir=tmp_path / "run")
    first = finetune((images, labels), workdir=tmp_path / "first", init=tmp_path / "run")
    with pytest.raises(ValueError, match="the weights of its start were others"):
        finetune((images, labels), workdir=tmp_path / "first")
    lines: list[str] = []
    again = finetune((images, labels), workdir=tmp_path / "first", init=tmp_path / "run", say=lines.append)
    np.testing.assert_array_equal(
        again.variables["params"]["Dense_0"]["bias"], first.variables["params"]["Dense_0"]["bias"]
    )
    assert "resuming" in lines[0]


def test_a_run_does_not_go_on_with_another_model_of_equal_parameters(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    finetune(arrays(), workdir=tmp_path)
    with pytest.raises(ValueError, match=r"holds another run \(its model computed something else\)"):
        finetune(arrays(), workdir=tmp_path, model=Small(activation=nn.gelu))
    monkeypatch.setattr(loop, "code", lambda *_: "JAX 0.0.1 0123456789abcdef")
    lines: list[str] = []
    finetune(arrays(), workdir=tmp_path, say=lines.append)
    assert "note: the run began with another version, so the operations of its model are not checked" in lines


class Ghosts(nn.Module):
    """Normalises four images at a time in training, and drops out."""

    rate: float

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dense(4)(x.mean((1, 2)))
        if train:
            groups = x.reshape(-1, 4, 4)
            x = (groups - groups.mean(1, keepdims=True)).reshape(-1, 4)
        return nn.Dense(3)(nn.Dropout(self.rate, deterministic=not train)(x))


def test_a_model_that_trains_on_whole_batches_alone_is_told_from_one_of_another_dropout(
    tmp_path: pathlib.Path,
):
    finetune(arrays(), workdir=tmp_path / "run", model=Ghosts(0.5))
    with pytest.raises(ValueError, match="its model computed something else"):
        finetune(arrays(), workdir=tmp_path / "run", model=Ghosts(0.25))
    finetune(iter([arrays()]), workdir=tmp_path / "iterator", model=Ghosts(0.5))


def test_classes_that_were_renamed_are_named(tmp_path: pathlib.Path):
    classes = dict.fromkeys("abc", 12)
    write_folder(tmp_path / "set", {"train": classes, "test": dict.fromkeys("abc", 3)})
    data = open_dataset(f"folder:{tmp_path / 'set'}")
    lines: list[str] = []
    result = finetune(data, workdir=tmp_path / "run", say=lines.append)
    assert result.tested[-1].step == 1  # on 9 images
    assert not any(line.startswith("note: others") for line in lines)
    for split in ("train", "test"):
        (tmp_path / "set" / split / "a").rename(tmp_path / "set" / split / "z")
    with pytest.raises(ValueError, match="the images changed: classes are gone: a, classes are new: z"):
        finetune(open_dataset(f"folder:{tmp_path / 'set'}"), workdir=tmp_path / "run")


def test_damaged_images_are_told_and_listed(tmp_path: pathlib.Path):
    write_folder(tmp_path / "set", {"train": dict.fromkeys("abc", 4), "test": dict.fromkeys("abc", 3)})
    for place in ("train/a/000.jpg", "test/b/001.jpg"):
        (tmp_path / "set" / place).write_bytes(DAMAGED["garbage"])
    data = open_dataset(f"folder:{tmp_path / 'set'}")
    lines: list[str] = []
    finetune(data, steps=4, workdir=tmp_path / "run", say=lines.append)
    (told,) = [line for line in lines if line.startswith("note: others")]
    assert re.search(
        r"stood in for damaged images [1-9]\d* times in training, and 1 .*damaged_images\.txt", told
    )
    listed = (tmp_path / "run" / "damaged_images.txt").read_text()
    assert "train/a/000.jpg" in listed and "test/b/001.jpg" in listed


def test_labels_without_a_logit_and_logits_that_are_not_finite():
    images, labels = arrays(4)
    good, bad = (images, labels), (images, labels + 5)
    with pytest.raises(ValueError, match="label 5 in batch 2, and `model` has 3 logits"):
        finetune(iter([good, (images, np.array([0, 5, 1, 2]))]), steps=2)
    for data in (good, iter([good])):
        with pytest.raises(ValueError, match="`model` has 3 logits and the images have"):
            finetune(data, bad)
    with pytest.raises(
        loop.NonFiniteLoss, match="images 0 to 3 are not finite, after step 0: give another `init`"
    ):
        finetune(good, (np.full_like(images, 3e38), labels))
    large = (1e15 * images, labels)
    with pytest.raises(loop.NonFiniteLoss, match=r"not finite, after step 1: lower `learning_rate`"):
        finetune(large, large, settings={"learning_rate": 2e9, "clip": 1e9})


def test_arrays_that_do_not_fit():
    images, labels = arrays(4)
    finetune([images, labels])
    finetune((list(images), labels))
    finetune((images, labels.tolist()))
    others: list[tuple[Any, str]] = [
        ((images, labels[:, None]), r"labels of shape \(4, 1\)"),
        ([{"image": images}], "`data` holds a dict, no pair"),
        ((np.full_like(images, np.nan), labels), "`data` has images with numbers that are not finite"),
    ]
    for data, message in others:
        with pytest.raises(ValueError, match=message):
            finetune(data)
    with pytest.raises(ValueError, match=r"`test` has images of shape .*, and `data` of .*: give the same"):
        finetune((images, labels), (images[:, :4], labels))


def test_a_start_that_is_none(tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match=r"`init` .*did you mean 'random'"):
        finetune(arrays(), init="rando")
    run = tmp_path / "random" / "seed0"
    finetune(arrays(), workdir=str(run))
    for directory in (tmp_path, tmp_path / "random"):
        with pytest.raises(ValueError, match=r"`init` .* holds 1 run: give one, as .*random/seed0"):
            finetune(arrays(), init=directory)
    finetune(arrays(), init=str(run))


def test_emptied_metrics_are_not_what_the_run_left(tmp_path: pathlib.Path):
    finetune(arrays(), workdir=tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match="not as the run left it"):
        finetune(arrays(), workdir=tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    finetune(arrays(), workdir=tmp_path)


def test_another_stem_is_another_model(tmp_path: pathlib.Path):
    finetune(arrays(), workdir=tmp_path)
    with pytest.raises(ValueError, match=r"is of another model \(Conv_0\.kernel and 0 others differ\)"):
        finetune(arrays(), init=tmp_path, model=Small(kernel=5))


@pytest.mark.parametrize("name", ["checkpoint_every", "log_every"])
def test_steps_between_two_are_at_least_one(name: str):
    with pytest.raises(ValueError, match=rf"`{name}` \(=0\) must be at least 1"):
        loop.finetune(Small(), arrays(), **{name: 0})  # pyright: ignore[reportArgumentType]


def test_worker_processes_can_import_what_was_run():
    runpy.run_module("ghn_jax.finetune", run_name="__mp_main__")
    with pytest.raises(ImportError, match="is a function"):
        runpy.run_module("ghn_jax.finetune", run_name="elsewhere")
