"""The command: one network, from one start or several, with one seed or several."""

import dataclasses
import pathlib
import re
from typing import Any

from ghn_jax.deepnets import sampling
from ghn_jax.deepnets.architectures import NAMED, Architecture
from ghn_jax.deepnets.networks import CellNetwork
from ghn_jax.finetuning import comparison, loop
from ghn_jax.finetuning.image_sets import FromDataset
from ghn_jax.finetuning.options import FinetuneOptions
from ghn_jax.images.loading import load
from ghn_jax.images.shots import few_shots
from ghn_jax.runtime import compilation, devices
from ghn_jax.runtime.errors import called, unknown_name
from ghn_jax.runtime.status import Status
from ghn_jax.targets import NAMES, target, variant
from ghn_jax.targets.importing import import_model


def run(options: FinetuneOptions) -> None:
    """Trains from each start with each seed, prints a table, draws the picture.

    Raises ValueError for options that do not fit each other, the model or the data, and NonFiniteLoss.
    """
    options = options.resolve()
    devices.check()
    compilation.use_persistent_cache(options.compilation_cache)
    with Status() as shown:
        _run(options, shown)


def _run(options: FinetuneOptions, shown: Status) -> None:
    shown.doing(f"loading {options.dataset}")
    dataset = load(options.dataset, options.data_dir, options.image_size, options.num_workers)
    for note in dataset.notes:
        shown.say(f"note: {note}")
    workdir = options.workdir or _default_workdir(options)
    curves: comparison.Curves = {start: {} for start in options.starts()}
    for seed in range(options.seed, options.seed + options.seeds):
        part = few_shots(dataset, options.shots, seed) if options.shots else dataset
        shown.doing(f"making {options.arch}")
        model = make_model(options, dataset.num_classes, dataset.image_size, seed)
        recipe = dataclasses.replace(options, seed=seed)
        for start in options.starts():
            shown.say(
                f"{options.arch} from {start}, seed {seed}, on {options.dataset} ({len(part.train):,} images of "
                f"{dataset.num_classes} classes at {dataset.image_size} pixels)"
            )
            folder = workdir / _plain(start) / f"seed{seed}"
            with called("model", "arch"):
                result = loop.train(
                    model,
                    FromDataset(part, options.evaluate_on, options.num_workers, folder),
                    start,
                    recipe,
                    folder,
                    options.checkpoint_every,
                    options.log_every,
                    shown,
                    identity=_identity(options, start) | {"image_size": dataset.image_size},
                )
            curves[start][seed] = result.tested
    shown.say(comparison.table(curves))
    comparison.write(workdir / "table.json", curves)
    if options.picture is not None:
        title = f"{options.arch} on {options.dataset}"
        comparison.draw(
            curves, options.picture, title + (f", {options.shots} a class" if options.shots else "")
        )


def make_model(options: FinetuneOptions, num_classes: int, image_size: int, seed: int) -> Any:
    """The model that `--arch` names, with as many classes as the images have.

    Raises ValueError for an unknown name, an index outside the split, and what cannot be imported.
    """
    arch = options.arch
    if ":" in arch:
        return import_model(arch, seed)
    if arch in NAMES:
        return target(arch, num_classes, variant(image_size))
    if arch.isdecimal():
        with called("index", "arch"):
            found = sampling.sample(options.split, int(arch), image_size=image_size)
    elif arch in NAMED:
        found = NAMED[arch]
    else:
        raise unknown_name("arch", arch, [*NAMES, *NAMED, "an index of a split", "FILE.py:FACTORY"])
    return CellNetwork(_widened(found, options.channels), num_classes, image_size, running_statistics=True)


def _widened(arch: Architecture, channels: int | None) -> Architecture:
    if channels is None:
        return arch
    if channels < 16 or channels % 16:
        raise ValueError(f"`channels` (={channels}) must be a positive multiple of 16")
    return dataclasses.replace(arch, C=channels)


def _identity(options: FinetuneOptions, start: str) -> dict[str, Any]:
    names = ("arch", "split", "channels", "dataset", "shots", "evaluate_on")
    return {name: getattr(options, name) for name in names} | {"init": start}


def _default_workdir(options: FinetuneOptions) -> pathlib.Path:
    arch = f"{options.split}{options.arch}" if options.arch.isdecimal() else options.arch
    shots = f"-{options.shots}shots" if options.shots else ""
    pixels = f"-{options.image_size}px" if options.image_size else ""
    return pathlib.Path("runs") / f"finetune-{_plain(arch)}-{_plain(options.dataset)}{pixels}{shots}"


def _plain(name: str) -> str:
    """A name fit for a directory."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._")
