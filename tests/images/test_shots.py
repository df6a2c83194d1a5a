"""A few images of each class."""

import dataclasses
import pathlib

import numpy as np
import pytest

from ghn_jax.images.resident import ImageSplit, load
from ghn_jax.images.shots import few_shots
from ghn_jax.images.sources import open_dataset
from tests.image_sets import DAMAGED, labels, write_folder


def test_each_class_has_as_many_and_the_seed_decides_which():
    digits = load("digits")
    first, second, again = (few_shots(digits, 20, seed) for seed in (0, 1, 0))
    assert np.bincount(first.train.labels).tolist() == [20] * 10
    assert (first.train.images == again.train.images).all()
    assert (first.train.images != second.train.images).any()
    assert first.test is digits.test


def test_streamed_sets_too(tmp_path: pathlib.Path):
    write_folder(tmp_path, {"train": {"a": 6, "b": 9}, "val": {"a": 2, "b": 2}, "test": {"a": 2, "b": 2}})
    few = few_shots(open_dataset(f"folder:{tmp_path}"), 5)
    assert not isinstance(few.train, ImageSplit)
    assert sorted(labels(few.train)) == [0] * 5 + [1] * 5
    with pytest.raises(ValueError, match=r"`shots` \(=7\) exceeds the 6 training images of class 0"):
        few_shots(open_dataset(f"folder:{tmp_path}"), 7)


def test_damaged_images_are_no_shots(tmp_path: pathlib.Path):
    write_folder(tmp_path, {"train": {"a": 6, "b": 6}, "val": {"a": 2, "b": 2}, "test": {"a": 2, "b": 2}})
    for index in range(5):
        (tmp_path / f"train/a/00{index}.jpg").write_bytes(DAMAGED["garbage"])
    dataset = open_dataset(f"folder:{tmp_path}")
    for seed in range(3):
        few = few_shots(dataset, 1, seed)
        assert sorted(example.place.split("/")[-2:] for example in map(few.train.__getitem__, range(2)))[
            0
        ] == [
            "a",
            "005.jpg",
        ]
    with pytest.raises(ValueError, match="exceeds the 1 training images of class 0"):
        few_shots(dataset, 2)


def test_no_shots_is_an_error():
    with pytest.raises(ValueError, match="`shots`"):
        few_shots(load("digits"), 0)


def test_a_class_without_images_is_named():
    digits = load("digits")
    kept = digits.train.labels != 4
    without = dataclasses.replace(
        digits, train=ImageSplit(digits.train.images[kept], digits.train.labels[kept])
    )
    with pytest.raises(ValueError, match="the 0 training images of class 4"):
        few_shots(without, 1)
