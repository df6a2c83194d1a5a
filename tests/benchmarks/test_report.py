"""What benchmarks print, kept as JSON and as a page."""

import pathlib

import pytest

from benchmarks import report

OUTPUT = """2 of 3 blocks

| block | run, ms | ours |
|---|---|---|
| Add | 2.8 | 2.4 |
| all | 3.0 | 2.5 |
ratio: 0.83
"""


def test_tables_and_lines_are_told_apart():
    parsed = report.parse(OUTPUT)
    table = {"columns": ["block", "run, ms", "ours"], "rows": [["Add", "2.8", "2.4"], ["all", "3.0", "2.5"]]}
    assert parsed == {"tables": [table], "lines": ["2 of 3 blocks", "ratio: 0.83"]}


def test_a_page_shows_what_was_printed():
    record = {
        "benchmark": "compilation",
        "command": "python -m benchmarks.compilation",
        "date": "2026-11-24",
        "machine": report.machine() | {"load before": 0.1},
        "versions": {"jax": "0.10"},
    }
    page = report.render([record | report.parse(OUTPUT)])
    for text in ("## compilation", "| Add | 2.8 | 2.4 |", "- ratio: 0.83", "2026-11-24", "jax 0.10"):
        assert text in page


def test_directories_of_this_machine_are_left_out():
    options = ["--golden", "../figures", "--data_dir=/data/sets", "--out=a/b", "--steps", "3", "~/public"]
    assert report.without_paths(options) == "--golden PATH --data_dir=PATH --out=PATH --steps 3 PATH"


def test_help_is_shown_and_not_kept(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(report, "_DIRECTORY", tmp_path)
    report.main(["memory", "--", "--help"])
    assert "--sizes" in capsys.readouterr().out
    assert not (tmp_path / "memory.json").exists()
