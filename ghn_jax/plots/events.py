"""A training run as TensorBoard events."""

import pathlib

from ghn_jax.plots import records
from ghn_jax.runtime.extras import extra

with extra("plots"):
    from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]

_SUFFIX = ".ghn_jax"
"""Tells the files written here from those of others."""


def write_events(metrics: pathlib.Path, directory: pathlib.Path) -> None:
    """Writes all numbers of metrics.jsonl, by step, to a directory for `tensorboard --logdir`.

    What was written there before is replaced. The times are those of the steps, as far back from the last change of the
    file as the run took.

    Raises ValueError if there is nothing to write.
    """
    lines = records.read(metrics, "run")
    for earlier in directory.glob(
        f"events.out.tfevents.*{_SUFFIX}"
    ):  # all of it comes again from the metrics
        earlier.unlink()
    seconds = [line.get("seconds", 0.0) for line in lines]
    start = metrics.stat().st_mtime - max(seconds)
    now = 0.0
    with SummaryWriter(str(directory), filename_suffix=_SUFFIX) as writer:
        for line in lines:
            now = line.get("seconds", now)
            for name, value in line.items():
                if name != "step" and records.is_finite(value):
                    writer.add_scalar(name, value, line["step"], walltime=start + now)
