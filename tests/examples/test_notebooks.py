"""The notebooks of examples/, their code cells run one after the other on small settings."""

import json
import pathlib
import re

import pytest

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"

SMALL = {
    "predict_your_model": {},
    "finetune_and_compare": {"STEPS": 8, "IMAGES": 16},
    "meta_train_on_your_images": {"STEPS": 1, "COUNT": 120, "ARCHITECTURES": 1},
}
"""Constants to set in each notebook."""


def code(name: str) -> list[str]:
    """The code cells of a notebook."""
    cells = json.loads((EXAMPLES / f"{name}.ipynb").read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_all_notebooks_are_here():
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_notebook_runs(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    source = "\n".join(code(name))
    for constant, value in SMALL[name].items():
        source, found = re.subn(rf"^{constant} = \d+", f"{constant} = {value}", source, flags=re.MULTILINE)
        assert found == 1, constant
    exec(compile(source, f"{name}.ipynb", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out
