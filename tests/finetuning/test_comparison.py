"""Tables and pictures of comparisons, from curves that are written here."""

import pathlib

import pytest

from ghn_jax.finetuning import comparison
from ghn_jax.finetuning.loop import Scored

CURVES = {
    "random": {
        0: [Scored(0, 10.0, 50.0), Scored(8, 30.0, 60.0)],
        1: [Scored(0, 12.0, 50.0), Scored(8, 34.0, 60.0)],
    },
    "ghn": {
        0: [Scored(0, 20.0, 50.0), Scored(8, 50.0, 60.0)],
        1: [Scored(0, 40.0, 50.0), Scored(8, 60.0, 60.0)],
    },
}


def test_table_has_means_and_spreads_and_what_prediction_saves():
    lines = comparison.table(CURVES).splitlines()
    assert "11.0 ± 1.4" in lines[1] and "32.0 ± 2.8" in lines[1]
    assert "30.0 ± 14.1" in lines[2]
    assert lines[3] == "random reaches what ghn has at step 0: by step 8 (seed 0), at no tested step (seed 1)"


def test_picture_is_drawn_or_its_package_named(tmp_path: pathlib.Path):
    try:
        import matplotlib  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ImportError:
        with pytest.raises(ValueError, match=r"ghn-jax\[plots\]"):
            comparison.draw(CURVES, tmp_path / "a.svg", "title")
        return
    comparison.draw(CURVES, tmp_path / "a.svg", "title")
    assert "<svg" in (tmp_path / "a.svg").read_text()
