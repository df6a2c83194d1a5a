"""Architecture search by prediction: `python -m ghn_jax.studies.search --num_archs=1000 --top=10`.

Ranks architectures of the split `search` by the accuracy that a GHN's parameters reach on held-out images, then trains
the best of them, and as many drawn at random, to see what the ranking is worth.
"""

import dataclasses
import pathlib
import statistics
from typing import Any

import numpy as np

from ghn_jax import pretrained
from ghn_jax.deepnets import sampling
from ghn_jax.evaluation import results
from ghn_jax.evaluation.accuracy import BATCH_SIZE
from ghn_jax.executor import lanes
from ghn_jax.images.loading import load
from ghn_jax.runtime import commands, compilation, devices, outputs
from ghn_jax.runtime.errors import check_range
from ghn_jax.runtime.extras import extra
from ghn_jax.runtime.status import Shown, Status
from ghn_jax.studies.baselines import (
    Record,
    Training,
    default_path,
    make_network,
    predicted_top1,
    train_architectures,
)
from ghn_jax.studies.rank import kendall

SPLIT = "search"


@dataclasses.dataclass(frozen=True)
class SearchOptions(Training):
    """Ranks architectures by what a GHN predicts, and trains the best and as many random ones."""

    num_archs: int = 1000
    """Rank the first so many architectures of the split `search`."""
    top: int = 10
    """Train so many of the best, and as many random ones."""
    val_batches: int = 10
    """Batches of 64 held-out images to rank by."""
    picture: pathlib.Path | None = None
    """Draws trained against predicted accuracy: FILE.png or FILE.svg (needs matplotlib)."""


def search(options: SearchOptions) -> None:
    """Ranks, trains and prints; goes on where an earlier call stopped.

    Raises ValueError for numbers out of range, and results of another command.
    """
    lanes.share_cores()
    recipe = options.recipe()
    size = sampling.SPLITS[SPLIT].size
    if not 1 <= options.num_archs <= size:
        raise ValueError(f"`num_archs` (={options.num_archs}) must be in 1..{size}, the size of the split")
    if not 2 <= 2 * options.top <= options.num_archs:
        raise ValueError(
            f"`top` (={options.top}) must be at least 1, and at most half of {options.num_archs}"
        )
    check_range("val_batches", options.val_batches, 1)
    for name in ("results", "picture"):
        outputs.check(name, getattr(options, name))
    if options.picture is not None and options.picture.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"`picture` (={str(options.picture)!r}) must end in .png, .svg or .pdf")
    devices.check()
    compilation.use_persistent_cache(options.compilation_cache)
    path = options.results or default_path(options, "search")
    with Status() as shown:
        predicted = rank(options, path.with_name(path.stem + "-ranking.jsonl"), shown)
        order = sorted(predicted, key=lambda index: -predicted[index])
        best = order[: options.top]
        rest = np.random.default_rng(options.seed).permutation(order[options.top :])
        drawn = [int(index) for index in rest[: options.top]]
        done = train_architectures(options, recipe, SPLIT, [*best, *drawn], path, shown)
    accuracy = {index: _last(done[str(index)]) for index in [*best, *drawn]}
    for name, group in (("best by prediction", best), ("random", drawn)):
        values = [accuracy[index] for index in group]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(
            f"{name:>20}: trained top-1 {statistics.fmean(values):.1f} ± {spread:.1f} %, max {max(values):.1f} % "
            f"(architecture {max(group, key=accuracy.__getitem__)})"
        )
    if len(accuracy) > 2:
        tau = kendall([predicted[index] for index in accuracy], list(accuracy.values()), seed=options.seed)
        print(f"Kendall's tau (95 % interval) of predicted and trained accuracy, all {len(accuracy)}: {tau}")
    if options.picture is not None:
        draw(predicted, accuracy, set(best), options.picture)


def rank(options: SearchOptions, path: pathlib.Path, shown: Shown) -> dict[int, float]:
    """Accuracy with predicted parameters on held-out images, by index: 0 for logits that are not finite.

    What the file has is not computed again.
    """
    shown.doing(f"loading {options.ckpt} and images")
    dataset = load(options.dataset, options.data_dir, options.image_size)
    ghn = pretrained.load(options.ckpt)
    names = ("ckpt", "dataset", "channels", "seed", "val_batches")
    header: dict[str, Any] = {name: getattr(options, name) for name in names}
    header |= {"image_size": dataset.image_size, "weights": results.checksum(ghn.params)}
    done = results.open_results(path, header, ("arch", "parameters", "top1"))
    waiting = [index for index in range(options.num_archs) if str(index) not in done]

    def judge(place: int) -> Record:
        network = make_network(options, SPLIT, waiting[place], dataset)
        top1 = predicted_top1(ghn, network, dataset, "val", options.val_batches * BATCH_SIZE)
        record = {"arch": str(waiting[place]), "parameters": network.num_parameters, "top1": top1}
        results.append(path, record)
        done[record["arch"]] = record
        return record

    shown.doing(lambda: f"{len(done)} of {options.num_archs} architectures ranked")
    for _ in lanes.run_in_lanes(judge, len(waiting)):
        pass
    shown.say(f"{len(done)} of {options.num_archs} architectures ranked -> {path}")
    return {index: done[str(index)]["top1"] or 0.0 for index in range(options.num_archs)}


def draw(predicted: dict[int, float], accuracy: dict[int, float], best: set[int], path: pathlib.Path) -> None:
    """Trained against predicted accuracy.

    Raises MissingExtra if matplotlib is not installed.
    """
    with extra("plots"):
        from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, chosen in (("best by prediction", best), ("random", accuracy.keys() - best)):
        axes.scatter([predicted[i] for i in chosen], [accuracy[i] for i in chosen], label=name)
    axes.set(xlabel="top-1 with predicted parameters, %", ylabel="top-1 after training, %")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _last(record: Record) -> float:
    return record["top1"][max(record["top1"], key=int)]


if __name__ == "__main__":
    commands.run(SearchOptions, search)
