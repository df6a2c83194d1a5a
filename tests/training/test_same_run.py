"""Going on from a checkpoint of other options, images or recipes, or of an earlier version."""

import dataclasses
import pathlib
from typing import Any

import pytest

from ghn_jax.images.identity import Identity
from ghn_jax.models.config import GHNConfig
from ghn_jax.training import same_run
from ghn_jax.training.options import TrainOptions

IMAGES = Identity(("ant", "bee"), {"train": 9, "val": 1, "test": 1}, "f")


def options(**more) -> TrainOptions:
    return TrainOptions(workdir=pathlib.Path("run"), **more).resolve()


def saved(**more) -> dict[str, Any]:
    run = {"options": options().identity(), "config": dataclasses.asdict(GHNConfig())}
    draw = {"narrowest": True, "work": 70e6, "places": 1 << 20}
    return run | {"data": IMAGES.to_dict(), "schedule_steps": 100, "draw": draw} | more


def check(now: TrainOptions, before: dict[str, Any], steps: int = 100) -> list[str]:
    return same_run.check(now, GHNConfig(), IMAGES, steps, before)


def test_the_same_run_is_gone_on_with():
    assert check(options(), saved()) == []


def test_a_schedule_of_other_steps_is_refused_or_goes_on_as_said():
    """The default recipe of digits follows a cosine."""
    with pytest.raises(
        ValueError, match=r"other options \(--steps was 100, is 200, over which .*--change_options"
    ):
        check(options(), saved(), steps=200)
    *_, note = check(options(change_options=True), saved(), steps=200)
    assert note == "the learning rate goes on as at this step of a run of 200 steps"
    published = options(recipe="published")
    assert check(published, saved(options=published.identity()), steps=200) == []


@pytest.mark.parametrize("change", [False, True])
def test_a_recipe_with_another_state_is_refused_with_what_differs(change: bool):
    message = r"recipe efficient \(optimiser muon, average of weights\), whose state published \(optimiser adam, no "
    with pytest.raises(ValueError, match=message + r"average of weights\) cannot go on with.*--init=run"):
        check(options(recipe="published", change_options=change), saved())


def test_a_recipe_that_is_another_one_in_this_version_is_refused_with_what_differs():
    parts = dataclasses.asdict(options().full_recipe())
    assert check(options(), saved(recipe=parts)) == []
    with pytest.raises(ValueError, match="own_images of the recipe efficient was False, is True"):
        check(options(), saved(recipe=parts | {"own_images": False}))
    del parts["own_images"]  # the first versions had no such part
    with pytest.raises(ValueError, match="own_images of the recipe efficient was False, is True"):
        check(options(), saved(recipe=parts))


def test_a_draw_that_means_other_networks_in_this_version_is_refused_or_noted():
    before = saved()
    before["draw"] |= {"work": 50e6}
    with pytest.raises(
        ValueError, match=r"--draw=narrow meant .*'work': 50000000.0.*, means .*'work': 70000000"
    ):
        check(options(), before)
    assert len(check(options(change_options=True), before)) == 1
    del before["draw"]
    (note,) = check(options(), before)
    assert "does not say which networks were light enough" in note
    before["options"] = options(draw="published").identity()
    (note,) = check(options(change_options=True), before)
    assert note == "gone on with although --draw was published, is narrow"


def test_checkpoints_of_earlier_versions_go_on():
    first = options(recipe="published", draw="published", image_size=32)
    newer = ("recipe", "draw", "image_size", "deepnets_dir", "precision")
    old = {name: value for name, value in first.identity().items() if name not in newer}
    before = {"options": old, "config": dataclasses.asdict(GHNConfig())}
    (note,) = check(first, before)
    assert "does not say what images it was trained on" in note


def test_other_images_are_refused_or_noted():
    before = saved(data=IMAGES.to_dict() | {"fingerprint": "g"})
    with pytest.raises(ValueError, match=r"other images \(images were replaced or renamed\)"):
        check(options(), before)
    assert check(options(change_options=True), before) == [
        "gone on with although images were replaced or renamed"
    ]


def test_another_ghn_is_refused_with_all_that_differs():
    before = saved(
        config=dataclasses.asdict(GHNConfig(hidden=8)), data=IMAGES.to_dict() | {"fingerprint": "g"}
    )
    with pytest.raises(ValueError, match=r"another GHN \(hidden was 8, is 32; images were"):
        check(options(change_options=True), before)
