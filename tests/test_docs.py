"""The README and docs say what works: their Python is run, and the options of their commands exist.

A comment before a block says when it cannot be run everywhere: `<!-- needs: haiku -->` where that library is missing,
`<!-- needs data -->` anywhere but where the data are; such a block is compiled.
"""

import ast
import contextlib
import functools
import io
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

import ghn_jax

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


class Block(NamedTuple):
    """A block of Python on a page."""

    page: pathlib.Path
    line: int
    code: str
    needs: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: pathlib.Path) -> Iterator[Block]:
    text = page.read_text()
    pattern = r"(?:<!-- needs:? (?P<needs>[\w, ]+) -->\n+)?```python\n(?P<code>.*?)```"
    for match in re.finditer(pattern, text, re.DOTALL):
        line = text[: match.start("code")].count("\n") + 1
        yield Block(page, line, match["code"], match["needs"] or "")


BLOCKS = [block for page in PAGES for block in blocks(page)]
NAMESPACES: dict[pathlib.Path, dict[str, Any]] = {}
"""What the blocks of a page so far have defined."""


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_python_runs(block: Block, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    code = compile("\n" * (block.line - 1) + block.code, str(block.page), "exec")
    if block.needs == "data":
        return
    for library in block.needs.replace(",", " ").split():
        pytest.importorskip(library)
    with contextlib.chdir(tmp_path), contextlib.redirect_stdout(io.StringIO()):
        exec(code, NAMESPACES.setdefault(block.page, {}))


COMMAND = re.compile(
    r"(?:python(?: -m (?P<module>(?:ghn_jax|datasets|benchmarks)[\w.]*)| (?P<script>train|evaluate)\.py)"
    r"|(?<![\w-])ghn-(?P<entry>train|evaluate|finetune)\b)(?P<arguments>[^`\n#&|]*(?:\\\n[^`\n#&|]*)*)"
)
SOURCES = {
    "train": "ghn_jax/training/options.py",
    "evaluate": "ghn_jax/evaluation/options.py",
    "finetune": "ghn_jax/finetuning/options.py",
}


def commands() -> list[tuple[pathlib.Path, str]]:
    """The files that declare the options of each command in the texts, and its arguments."""
    found = set()
    wrong_on_purpose = ROOT / "docs" / "faults.md"  # test_faults_page.py runs what is there
    for page in [*PAGES, ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]:
        if page == wrong_on_purpose:
            continue
        for match in COMMAND.finditer(page.read_text()):
            name = match["script"] or match["entry"]
            module = ROOT.joinpath(*(match["module"] or "").split("."))
            source = ROOT / SOURCES[name] if name else module.with_suffix(".py")
            found.add((source if source.is_file() else module / "__main__.py", match["arguments"].strip()))
    return sorted(found)


@functools.cache
def options(source: pathlib.Path) -> frozenset[str]:
    """Names that a command's file declares: annotated fields and arguments, strings such as '--name'."""
    names = {"help"}
    for node in ast.walk(ast.parse(source.read_text())):
        match node:
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.arg(arg=name):
                names.add(name)
            case ast.Constant(value=str(text)) if text.startswith("--"):
                names.add(text[2:].replace("-", "_"))
            case ast.ImportFrom(module=str(module)) if module.endswith((".options", ".recipe")):
                names |= options(ROOT.joinpath(*module.split(".")).with_suffix(".py"))
    return frozenset(names)


@pytest.mark.parametrize(
    "source, arguments", commands(), ids=lambda value: str(value).removeprefix(f"{ROOT}/")
)
def test_options_of_commands_exist(source: pathlib.Path, arguments: str):
    assert source.is_file()
    used = {name.replace("-", "_") for name in re.findall(r"(?<!\S)\[?--([a-z][\w-]*)", arguments)}
    assert used <= options(source)


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_reference_has_every_public_name():
    documented = re.findall(
        r"^::: ghn_jax\.(\w+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE
    )
    assert sorted(documented) == sorted(ghn_jax.__all__)
