"""Draws a training run, and the evaluations of its weights: `python -m ghn_jax.plots runs/ghn2-digits`.

With `--tensorboard=DIR` also writes its metrics there, for `tensorboard --logdir=DIR`.
"""

import dataclasses
import pathlib
from typing import Annotated, Literal

from ghn_jax.runtime import commands, outputs
from ghn_jax.runtime.extras import extra

with commands.errors_as_lines(), extra("plots"):
    import tyro

    from ghn_jax.plots.figures import evaluation_figure, training_figure


@dataclasses.dataclass(frozen=True)
class PlotOptions:
    """Draws the loss and accuracy of a training run, and its evaluations by split.

    Writes training.FORMAT and, if the run was evaluated, evaluation.FORMAT.
    """

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """The work directory of a training run, or of a start and seed of a fine-tuning (DIR/START/seedN)."""
    results: tuple[pathlib.Path, ...] = ()
    """Files of evaluations [those of the run in the directory eval beside it]."""
    output: pathlib.Path | None = None
    """Directory to write to [that of the run]."""
    format: Literal["png", "svg", "pdf"] = "png"
    """Kind of the files."""
    tensorboard: pathlib.Path | None = None
    """Directory for the metrics as TensorBoard events, which replace those of an earlier call [none are written]."""


def plot(options: PlotOptions) -> None:
    """Writes the figures and prints their paths. Raises ValueError if there is nothing to draw."""
    output = options.output or options.run
    if not (options.run / "metrics.jsonl").exists():
        inside = outputs.runs_inside(options.run)
        remedy = f"one in it, as {str(inside[0])!r}" if inside else "the work directory of a run"
        raise ValueError(f"`run` (={str(options.run)!r}) has no metrics.jsonl: give {remedy}")
    evaluations = options.results or sorted((options.run.parent / "eval").glob(f"{options.run.name}-*.jsonl"))
    figures = {"training": training_figure(options.run / "metrics.jsonl")}
    if evaluations:
        figures["evaluation"] = evaluation_figure(evaluations)
    outputs.check_directory("output", output)
    output.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        path = output / f"{name}.{options.format}"
        figure.savefig(path, dpi=150)
        print(path)
    if options.tensorboard is not None:
        with extra("plots"):
            from ghn_jax.plots.events import write_events
        write_events(options.run / "metrics.jsonl", options.tensorboard)
        print(f"{options.tensorboard}: tensorboard --logdir={options.tensorboard} shows it")


if __name__ == "__main__":
    commands.run(PlotOptions, plot)
