"""The commands: `python -m ghn_jax` lists them, and what is installed."""

import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import sys
from typing import cast

import ghn_jax
from ghn_jax.runtime import commands

_COMMANDS = {
    "ghn-train": "meta-trains a GHN; in a clone also python train.py",
    "ghn-evaluate": "tests a GHN on unseen architectures, or on a model; in a clone also python evaluate.py",
    "ghn-finetune": "trains a network from predicted parameters, and compares; also python -m ghn_jax.finetune",
    "python -m ghn_jax.plots": "draws a training run and its evaluations",
    "python -m ghn_jax.pretrained": "lists, shows and converts files of GHNs",
    "python -m ghn_jax.studies.search": "searches by predicted accuracy; also .baselines, .properties",
    "python -m ghn_jax": "prints this",
}


def train() -> None:
    """`ghn-train`."""
    with commands.errors_as_lines():
        from ghn_jax.training.loop import train
        from ghn_jax.training.options import TrainOptions

    def train_and_draw(options: TrainOptions) -> None:
        train(options)
        if not options.process_id:  # the others have written nothing
            draw(cast(pathlib.Path, options.resolve().workdir))

    commands.run(TrainOptions, train_and_draw)


def evaluate() -> None:
    """`ghn-evaluate`."""
    with commands.errors_as_lines():
        from ghn_jax.evaluation.accuracy import NotFinite
        from ghn_jax.evaluation.options import EvaluateOptions
        from ghn_jax.evaluation.report import evaluate

    def evaluate_and_draw(options: EvaluateOptions) -> None:
        run = pathlib.Path(os.path.expanduser(options.ckpt))
        try:
            evaluate(options)
        except NotFinite:  # raised when all others are done
            draw(run)
            raise
        draw(run)

    commands.run(EvaluateOptions, evaluate_and_draw)


def finetune() -> None:
    """`ghn-finetune`."""
    with commands.errors_as_lines():
        from ghn_jax.finetuning.command import run
        from ghn_jax.finetuning.options import FinetuneOptions

    commands.run(FinetuneOptions, run)


def draw(run: pathlib.Path) -> None:
    """Draws a training run and its evaluations, if it is one and matplotlib is installed."""
    if not (run / "metrics.jsonl").exists() or importlib.util.find_spec("matplotlib") is None:
        return
    from ghn_jax.plots.__main__ import PlotOptions, plot

    try:
        plot(PlotOptions(run))
    except (ValueError, OSError) as error:  # what the command was for is done
        print(f"note: no picture: {error}")


def overview() -> str:
    """Version, commands, bundled GHNs and devices."""
    import jax

    from ghn_jax import pretrained
    from ghn_jax.runtime import devices as usable

    usable.check()
    libraries = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax", "numpy"))
    devices = jax.devices()
    lines = [
        f"ghn_jax {ghn_jax.__version__} (Python {platform.python_version()}, {libraries})",
        "",
        "commands (--help lists the options of each)",
        *(f"  {command:<32}  {what}" for command, what in _COMMANDS.items()),
        "",
        "bundled GHNs",
        *(f"  {name:<32}  {pretrained.load(name).info.get('dataset', '')}" for name in pretrained.bundled()),
        "",
        f"devices\n  {len(devices)} x {devices[0].device_kind} ({jax.default_backend()})",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    with commands.errors_as_lines():
        if given := [word for word in sys.argv[1:] if word not in ("-h", "--help")]:
            raise ValueError(
                f"`{given[0]}` has no effect: python -m ghn_jax takes no options, and lists the commands"
            )
        print(overview())
