"""Recipes at equal compute: what a GHN has learned after running a fixed amount of networks.

    python -m benchmarks.recipes --recipes published efficient efficient:learning_rate=1e-3 --out=DIR

Networks are small, of 32 channels and among the lighter third of the split train, on digits or CIFAR-10 halved to 16
pixels, so that a run takes minutes on one core. The budget counts multiply-adds (`Lowered.work`, times images), not
seconds. Held-out architectures (the same kind, of the split test) and images are the same for all.

A candidate is the name of a recipe, and after a colon what differs from it. Each run leaves a file in DIR when it is
done; the same command goes on with the runs that are missing, and draws a picture of all.
"""

import dataclasses
import json
import os
import pathlib
import re
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from ghn_jax.deepnets import sampling
from ghn_jax.deepnets.architectures import Architecture
from ghn_jax.deepnets.lowering import lower
from ghn_jax.evaluation.accuracy import network_accuracy, predict_flat
from ghn_jax.executor import lanes
from ghn_jax.executor.program import Lowered
from ghn_jax.images.loading import load
from ghn_jax.images.resident import ImageDataset, ImageSplit
from ghn_jax.models.config import preset
from ghn_jax.models.templates import deepnets_templates
from ghn_jax.runtime import commands, compilation
from ghn_jax.training import feed, meta, prepare
from ghn_jax.training.pmapped import replicate, unreplicate
from ghn_jax.training.recipes import Recipe, recipe

_NUM_HELD_OUT = 16
_IMAGES = 128
_CONFIG = preset("ghn2")
_TEMPLATES = deepnets_templates(_CONFIG, 32)


@dataclasses.dataclass(frozen=True)
class Options:
    """Compares recipes."""

    out: pathlib.Path
    """Where runs are kept, and the picture."""
    recipes: tuple[str, ...] = ("published", "efficient")
    """Candidates, such as efficient:learning_rate=1e-3,average=None."""
    dataset: str = "digits"
    """digits or cifar10."""
    data_dir: pathlib.Path | None = None
    """TFDS directory of cifar10."""
    budget: float = 1.8
    """Multiply-adds of the forward passes, in units of 10^12; 1.8 is about 1,600 networks x 32 images."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights, architectures and images."""
    meta_batch_size: int = 8
    """Networks a step."""
    batch_size: int = 32
    """Images a step."""
    points: int = 4
    """Evaluations a run, evenly over the budget."""


def main(options: Options) -> None:
    """Runs what is missing, then prints the table."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core, to run beside other work
    lanes.share_cores()
    compilation.use_persistent_cache()
    options.out.mkdir(parents=True, exist_ok=True)
    candidates = {name: _candidate(name) for name in options.recipes}
    dataset = _halved(load(options.dataset, options.data_dir))
    held_out = list(_networks("test", 0, _NUM_HELD_OUT))
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        for name, chosen in candidates.items():
            label = re.sub(r"[^\w.=-]+", "_", f"{options.dataset}-{name}-{seed}")
            path = options.out / f"{label}.json"
            settings = dataclasses.asdict(chosen) | {
                "budget": options.budget,
                "meta_batch_size": options.meta_batch_size,
                "batch_size": options.batch_size,
            }
            if path.exists() and json.loads(path.read_text())["settings"] == settings:
                results.setdefault(name, []).append(json.loads(path.read_text()))
                continue
            curve = list(_run(chosen, seed, options, dataset, held_out, name))
            record = {"candidate": name, "seed": seed, "settings": settings, "curve": curve}
            partial = path.with_suffix(".part")
            partial.write_text(json.dumps(record) + "\n")
            partial.replace(path)
            results.setdefault(name, []).append(record)
    _print(results, options)
    _draw(results, options)


def _candidate(name: str) -> Recipe:
    base, _, changes = name.partition(":")
    values: dict[str, Any] = {}
    for change in filter(None, changes.split(",")):
        key, _, value = change.partition("=")
        if key not in Recipe.__dataclass_fields__:
            raise ValueError(f"`recipes` ({name!r}) changes {key!r}, and a recipe has no such field")
        words = {"None": None, "True": True, "False": False}
        values[key] = words.get(value, value) if value.isidentifier() else float(value)
    return dataclasses.replace(recipe(base), **values)


def _halved(dataset: Any) -> ImageDataset:
    """The same images with half the height and width: a quarter of the work."""

    def half(split: ImageSplit) -> ImageSplit:
        count, size = len(split.images), split.images.shape[1] // 2
        pixels = split.images.astype(np.float32).reshape(count, size, 2, size, 2, 3).mean((2, 4))
        return dataclasses.replace(split, images=np.rint(pixels).astype(np.uint8))

    assert isinstance(dataset, ImageDataset) and dataset.image_size == 32
    splits = {name: half(getattr(dataset, name)) for name in ("train", "val", "test")}
    return dataclasses.replace(dataset, image_size=16, pad=dataset.pad // 2, **splits)


def _networks(split: str, seed: int, count: int | None = None) -> Iterator[Lowered]:
    """Small networks of a split that run at any image size."""
    works = sorted(_small(sampling.sample("train", i, seed=99)).work for i in range(60))
    index = 0
    while count is None or count > 0:
        arch = sampling.sample(split, index, seed)
        index += 1
        if arch.is_vit or not arch.glob_avg:
            continue
        network = _small(arch)
        if network.work <= works[len(works) // 3]:
            count = None if count is None else count - 1
            yield network


def _small(arch: Architecture) -> Lowered:
    return lower(dataclasses.replace(arch, C=32, fc_dim=64))


def _run(
    chosen: Recipe, seed: int, options: Options, dataset: ImageDataset, held_out: list[Lowered], name: str
) -> Iterator[dict[str, float]]:
    """Trains for the budget; yields what has been reached at each point."""
    devices = jax.devices()[:1]
    budget = options.budget * 1e12
    networks = _networks("train", seed)
    batches, work = [], 0.0
    while work < budget:  # known beforehand, since a schedule needs the number of steps
        batches.append(tuple(next(networks) for _ in range(options.meta_batch_size)))
        work += options.batch_size * sum(network.work for network in batches[-1])
    optimizer = chosen.make_optimizer(len(batches))
    ghn = meta.make_ghn_step(_CONFIG, _TEMPLATES, optimizer, devices, chosen)
    init_key, image_key, dropout_key = jax.random.split(jax.random.key(seed), 3)
    state = replicate(meta.init_state(_CONFIG, optimizer, init_key, chosen), devices)
    groups = options.meta_batch_size if chosen.own_images else 1
    images = feed.open_feed(dataset, options.batch_size * groups, image_key, seed, 0, {}, 0)
    due = [round(len(batches) * (i + 1) / options.points) for i in range(options.points)]
    start, losses = time.monotonic(), []
    for step, drawn in enumerate(batches, start=1):
        x, y = (part.reshape(groups, -1, *part.shape[1:]) for part in images(step - 1))
        batch = prepare.prepare(drawn, _CONFIG, _TEMPLATES, num_devices=1)
        key = jax.random.fold_in(dropout_key, step)
        state, metrics = meta.meta_step(ghn, state, batch, [x], [y], key)
        losses.append(float(metrics.loss[0]))
        if step in due:
            params = unreplicate(state).best_params
            scores = [_accuracy(network, params, dataset) for network in held_out]
            point = {
                "share": step / len(batches),
                "networks": step * options.meta_batch_size,
                "loss": statistics.fmean(losses[-20:]),
                "top1": statistics.fmean(scores),
                "best": max(scores),
                "seconds": round(time.monotonic() - start, 1),
            }
            print(f"{name} seed {seed}: {json.dumps(point)}", flush=True)
            yield point


def _accuracy(network: Lowered, params: Any, dataset: ImageDataset) -> float:
    flat = predict_flat(_CONFIG, params, network, _TEMPLATES)
    return network_accuracy(network, flat, dataset, "test", _IMAGES).top1


def _print(results: dict[str, list[dict[str, Any]]], options: Options) -> None:
    print(
        f"\n{options.dataset}, top-1 on {_NUM_HELD_OUT} unseen architectures, mean ± standard error of seeds"
    )
    for name, runs in results.items():
        cells = []
        for point in range(options.points):
            scores = [run["curve"][point]["top1"] for run in runs]
            error = statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0
            cells.append(f"{statistics.fmean(scores):.1f} ± {error:.1f}")
        networks = runs[0]["curve"][-1]["networks"]
        print(f"| {name} | {networks:,} | {' | '.join(cells)} |")


def _draw(results: dict[str, list[dict[str, Any]]], options: Options) -> None:
    """A line for each candidate: mean top-1 over the budget spent."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: it needs matplotlib")
        return
    figure = Figure((6, 4))
    axes = figure.subplots()
    for name, runs in results.items():
        curves = np.array([[point["top1"] for point in run["curve"]] for run in runs])
        shares = [point["share"] for point in runs[0]["curve"]]
        axes.errorbar(shares, curves.mean(0), curves.std(0), label=name, capsize=3)
    axes.set(xlabel="share of the budget", ylabel="top-1 on unseen architectures (%)", title=options.dataset)
    axes.legend()
    figure.savefig(options.out / f"{options.dataset}-recipes.svg")


if __name__ == "__main__":
    commands.run(Options, main)
