"""The rooms of the library: who may import whom."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]

FLOORS = (
    ("runtime",),
    ("graphs",),
    ("tracing", "executor"),
    ("deepnets", "targets", "models", "images"),
    ("pretrained",),
    ("predict",),
    ("evaluation",),
    ("training", "plots"),
    ("finetuning",),
    ("finetune", "studies"),
)
"""From the ground up; an import leads to the same room or to a lower floor."""

FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imports(path: pathlib.Path) -> set[str]:
    """Modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(module: str) -> str:
    """The room of a module of ghn_jax; '' for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOOR else ""


FILES = sorted((ROOT / "ghn_jax").rglob("*.py"))


def test_there_are_few_rooms():
    rooms = {path.relative_to(ROOT / "ghn_jax").parts[0].removesuffix(".py") for path in FILES}
    assert rooms - set(FLOOR) <= {"__init__", "__main__"}
    assert len(FLOOR) <= 19


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_lead_down(path: pathlib.Path):
    here = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for module in imports(path):
        top = module.split(".")[0]
        assert top not in ("datasets", "benchmarks", "tests"), f"{path}: {module}"
        if top != "ghn_jax" or not here:
            continue
        there = room_of(module)
        assert there, f"{path} imports the package itself: {module}"
        assert there == here or FLOOR[there] < FLOOR[here], f"{path}: {module} is not below {here}"


def test_models_know_of_the_executor_the_flat_vector_alone():
    for path in (ROOT / "ghn_jax" / "models").glob("*.py"):
        used = {m for m in imports(path) if m.startswith("ghn_jax.executor")}
        assert all(m.startswith("ghn_jax.executor.layouts") for m in used), path


def arrows() -> set[tuple[str, str]]:
    """From room to room that it imports, without those that follow from others."""
    direct = {
        (here, there)
        for path in FILES
        if (here := room_of(".".join(path.relative_to(ROOT).with_suffix("").parts)))
        for module in imports(path)
        if (there := room_of(module)) and there != here and module.startswith("ghn_jax.")
    }
    reach = set(direct)
    for middle in FLOOR:  # Warshall's transitive closure
        reach |= {(a, c) for a, b in reach if b == middle for d, c in reach if d == middle}
    return {(a, c) for a, c in direct if not any((a, b) in reach and (b, c) in reach for b in FLOOR)}


def test_the_drawing_of_the_rooms_is_true():
    drawn = re.search(r"```mermaid\n(.*?)```", (ROOT / "docs" / "design.md").read_text(), re.DOTALL)
    assert drawn
    assert set(re.findall(r"(\w+) --> (\w+)", drawn[1])) == arrows()
