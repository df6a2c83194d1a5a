"""Compares starts: accuracy against steps, as a table and as a picture."""

import json
import pathlib
import statistics
from typing import Any

from ghn_jax.finetuning.loop import Scored
from ghn_jax.finetuning.starts import RANDOM
from ghn_jax.runtime.extras import extra

Curves = dict[str, dict[int, list[Scored]]]
"""Tests by start and seed, in the order of steps."""


def table(curves: Curves) -> str:
    """Accuracy by start and step, mean ± standard deviation over seeds; and what prediction saves."""
    steps = _steps(curves)
    width = max(8, *(len(start) for start in curves))
    lines = [f"{'top-1 %':<{width}}" + "".join(f"{f'step {step}':>16}" for step in steps)]
    for start, seeds in curves.items():
        cells = (_spread(_at(seeds, step)) for step in steps)
        lines.append(f"{start:<{width}}" + "".join(f"{cell:>16}" for cell in cells))
    for start in curves:
        reached = steps_to_reach(curves, start)
        if reached:
            lines.append(f"random reaches what {start} has at step 0: {_told(reached)}")
    return "\n".join(lines)


def steps_to_reach(curves: Curves, start: str) -> dict[int, int | None]:
    """By seed, the first tested step at which random has at least what another start has at 0; None if at none."""
    if start == RANDOM or RANDOM not in curves:
        return {}
    found = {}
    for seed, tested in curves[start].items():
        wanted = next((test.top1 for test in tested if test.step == 0), None)
        drawn = curves[RANDOM].get(seed)
        if wanted is not None and drawn:
            found[seed] = next((test.step for test in drawn if test.top1 >= wanted), None)
    return found


def write(path: pathlib.Path, curves: Curves) -> None:
    """The same figures as JSON."""
    data: dict[str, Any] = {
        start: {str(seed): [test._asdict() for test in tested] for seed, tested in seeds.items()}
        for start, seeds in curves.items()
    }
    data["steps_to_reach"] = {start: steps_to_reach(curves, start) for start in curves if start != RANDOM}
    path.write_text(json.dumps(data, indent=1) + "\n")


def draw(curves: Curves, path: pathlib.Path, title: str) -> None:
    """One line a start, the mean over seeds, on a band from the lowest to the highest.

    Raises MissingExtra if matplotlib is not installed.
    """
    with extra("plots"):
        from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    steps = _steps(curves)
    for start, seeds in curves.items():
        values = [_at(seeds, step) for step in steps]
        (line,) = axes.plot(steps, [statistics.fmean(v) for v in values], marker="o", label=start)
        lowest, highest = [min(v) for v in values], [max(v) for v in values]
        axes.fill_between(steps, lowest, highest, color=line.get_color(), alpha=0.2)
    axes.set(xlabel="steps", ylabel="top-1 on test images, %", title=title)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _steps(curves: Curves) -> list[int]:
    """Steps at which every run was tested."""
    runs = [{test.step for test in tested} for seeds in curves.values() for tested in seeds.values()]
    return sorted(set.intersection(*runs)) if runs else []


def _at(seeds: dict[int, list[Scored]], step: int) -> list[float]:
    return [test.top1 for tested in seeds.values() for test in tested if test.step == step]


def _spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def _told(reached: dict[int, int | None]) -> str:
    steps = [
        f"{'at no tested step' if step is None else f'by step {step}'} (seed {seed})"
        for seed, step in reached.items()
    ]
    return ", ".join(steps)
