"""Figures of a training run and of evaluations, from the JSON lines that these write."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ghn_jax.evaluation.accuracy import summarize
from ghn_jax.plots import records
from ghn_jax.plots.records import Series, series
from ghn_jax.runtime.extras import extra

with extra("plots"):
    from matplotlib.axes import Axes  # pyright: ignore[reportMissingImports]
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

_COLUMNS = 3
"""Histograms side by side."""


def training_figure(metrics: pathlib.Path) -> Figure:
    """Loss and top-1 accuracy by step, with their running medians, and the accuracy of each validation or test."""
    lines = records.read(metrics, "run")
    if not all("step" in line for line in lines):
        raise ValueError(
            f"`run` (={str(metrics)!r}) is of something else: its lines are no steps of a training run"
        )
    figure = Figure(figsize=(11, 4), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    _draw_steps(losses, series(lines, "loss"), "loss")
    _draw_steps(accuracies, series(lines, "top1"), "top-1 accuracy on training images, %")
    for name, label in (("val_top1", "validation, unseen architectures"), ("test_top1", "test images")):
        steps, validated = series(lines, name)
        if len(steps):
            accuracies.plot(steps, validated, "o-", color="tab:red", label=label)
            accuracies.legend()
    figure.suptitle(metrics.parent.name)
    return figure


def evaluation_figure(files: Sequence[pathlib.Path]) -> Figure:
    """A histogram of the top-1 accuracies of each evaluation, with their mean and the best architecture."""
    rows = math.ceil(len(files) / _COLUMNS)
    columns = min(len(files), _COLUMNS)
    figure = Figure(figsize=(4 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for file, axis in zip(files, axes, strict=False):
        header, *networks = records.read(file, "results")
        if not {"split", "dataset"} <= header.keys() or not all(
            {"arch", "top1"} <= n.keys() for n in networks
        ):
            raise ValueError(
                f"`results` (={str(file)!r}) is of something else: it is no evaluation of a split"
            )
        _draw_histogram(axis, header, networks)
    for axis in axes[len(files) :]:
        axis.set_visible(False)
    figure.supxlabel("top-1 accuracy, %")
    figure.supylabel("architectures")
    return figure


def running_median(values: Float[np.ndarray, " step"], window: int) -> Float[np.ndarray, " step"]:
    """The median of the last `window` values at each step, of fewer at the first ones."""
    return np.array([np.median(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))])


def _draw_steps(axis: Axes, drawn: Series, label: str) -> None:
    steps, values = drawn
    window = max(1, len(values) // 20)
    axis.plot(steps, values, color="tab:blue", alpha=0.25, linewidth=0.8)
    axis.plot(steps, running_median(values, window), color="tab:blue", label=f"median of {window} steps")
    axis.set(xlabel="step", ylabel=label)
    if len(values):
        low, high = np.percentile(values, [0, 98])  # a few steps may be far off
        margin = 0.05 * (high - low) or 0.5
        axis.set_ylim(low - margin, high + 3 * margin)
    axis.legend()


def _draw_histogram(axis: Axes, header: dict[str, Any], networks: Sequence[dict[str, Any]]) -> None:
    title = f"{header['split']}, {header['dataset']}"
    if not networks:
        axis.set_title(f"{title}: nothing evaluated yet")
        return
    accuracies = [network["top1"] for network in networks]
    summary = summarize(accuracies, [network["arch"] for network in networks])
    axis.hist(accuracies, bins="auto" if len(accuracies) > 1 else 1, color="tab:blue", alpha=0.6)
    axis.axvline(
        summary.mean, color="black", label=f"mean {summary.mean:.1f} ± {summary.standard_error:.1f} %"
    )
    axis.axvline(
        summary.best,
        color="tab:red",
        linestyle=":",
        label=f"best {summary.best:.1f} % at {summary.best_index}",
    )
    axis.set_title(f"{title}: {len(accuracies)} architectures")
    axis.legend(fontsize="small")
