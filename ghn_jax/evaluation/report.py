"""Evaluates a GHN on a split of architectures, into a file that a later run goes on from."""

import pathlib
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ghn_jax import pretrained
from ghn_jax.evaluation import results
from ghn_jax.evaluation.accuracy import NotFinite, Summary, network_accuracy, predict_flat, summarize
from ghn_jax.evaluation.architectures import select
from ghn_jax.evaluation.models import evaluate_model
from ghn_jax.evaluation.options import (
    TABLE,
    EvaluateOptions,
    count_images,
    images_header,
    is_model,
    open_images,
)
from ghn_jax.evaluation.table import evaluate_table
from ghn_jax.executor import lanes
from ghn_jax.executor.program import Lowered
from ghn_jax.images.damage import DamageList
from ghn_jax.models.templates import deepnets_templates
from ghn_jax.runtime import compilation, devices
from ghn_jax.runtime.status import Status

_FEW_CLASSES = 10
"""Up to as many, the top-5 accuracy says little."""

_BAR = 30
"""Characters of a bar of 100 %."""


def evaluate(options: EvaluateOptions) -> None:
    """Evaluates a split, all of the published table, or a model.

    Raises ValueError for unknown names, an index outside the split, a GHN that does not fit the dataset, and results of
    another evaluation; NotFinite, when all is done, for networks whose parameters or logits are not finite.
    """
    options = options.resolve()
    if options.arch is None:
        lanes.share_cores()
    devices.check()
    compilation.use_persistent_cache(options.compilation_cache)
    if options.arch is not None and is_model(options.arch):
        evaluate_model(options)
    elif options.split == TABLE:
        evaluate_table(options, evaluate_split)
    else:
        evaluate_split(options)


def evaluate_split(options: EvaluateOptions) -> tuple[Summary, dict[str, float]]:
    """Evaluates a split, prints its architectures and a summary, and appends to the results file.

    Returns the summary and each accuracy, top-5 if there are many classes.
    """
    with Status() as shown:
        return _evaluate_split(options, shown)


def _evaluate_split(options: EvaluateOptions, shown: Status) -> tuple[Summary, dict[str, float]]:
    shown.doing(f"loading {options.ckpt} and images")
    ghn = pretrained.load(options.ckpt)
    name, dataset = open_images(options, ghn.info)
    if dataset.num_classes != ghn.config.num_classes:
        raise ValueError(
            f"`ckpt` (={options.ckpt!r}) predicts {ghn.config.num_classes} classes and `dataset` (={name!r}) has "
            f"{dataset.num_classes}: choose a GHN trained for that many"
        )
    selected = select(options, dataset.image_size)
    split = "val" if options.split == "val" else "test"
    num_images = count_images(options, dataset)
    weights = results.checksum(ghn.params)
    path = options.results or _default_path(options, weights, name)
    header = {
        "ckpt": options.ckpt,
        "weights": weights,
        "dataset": name,
        "images": num_images,
        "split": options.split,
        "seed": options.seed,
        "channels": options.channels,
    }
    header |= images_header(options, dataset)
    header |= {"noise": options.noise} if options.noise else {}
    if options.deepnets_dir is not None:
        header["deepnets_dir"] = str(options.deepnets_dir)
    done = results.open_results(path, header)

    templates = deepnets_templates(ghn.config, dataset.image_size)
    shown.say(
        f"{options.ckpt} {results.training(ghn.info)}: {len(selected)} architectures of {options.split} "
        f"on {num_images} {name} images"
    )
    for note in dataset.notes:
        shown.say(f"note: {note}")
    damage = DamageList(path.with_suffix(".damaged.txt"))
    many = dataset.num_classes > _FEW_CLASSES
    shown.say(
        f"{'arch':>10}  {'parameters':>10}  {'top-1 %':>7}  "
        + ("top-5 %  " if many else "")
        + f"{'predict s':>9}  {'test s':>6}  0 % {' ' * (_BAR - 8)}100 %"
    )

    missing = [(key, make) for key, make in selected if key not in done]

    writing = threading.Lock()

    def tested(index: int) -> dict[str, Any] | NotFinite:
        try:
            row, damaged_images = measured(*missing[index])
        except NotFinite as error:  # the others are evaluated all the same
            return error
        with writing:  # now, though one before it may take long
            damage.add(damaged_images)
            results.append(path, row)
        return row

    def measured(key: str, make: Callable[[int, int], Lowered]) -> tuple[dict[str, Any], tuple[str, ...]]:
        described = f"architecture {key} of {options.split}"
        network = make(dataset.num_classes, dataset.image_size)
        start = time.monotonic()
        flat = jax.block_until_ready(predict_flat(ghn.config, ghn.params, network, templates))
        predicted = time.monotonic()
        if not jnp.isfinite(flat).all():
            raise NotFinite(f"predicted parameters of {described} are not finite")
        accuracy = network_accuracy(
            network,
            flat,
            dataset,
            split,
            num_images,
            num_workers=options.num_workers,
            noise=options.noise,
            name=described,
        )
        return {
            "arch": key,
            "parameters": network.num_parameters,
            "top1": accuracy.top1,
            "top5": accuracy.top5,
            "images": accuracy.num_images,
            "predict_seconds": round(predicted - start, 4),
            "test_seconds": round(time.monotonic() - predicted, 3),
        }, accuracy.damaged

    shown.doing(lambda: f"{sum(key in done for key, _ in selected)} of {len(selected)} architectures done")
    rows = lanes.run_in_lanes(tested, len(missing))
    failures: dict[str, NotFinite] = {}
    for key, _ in selected:
        if key not in done:
            outcome = next(rows)
            if isinstance(outcome, NotFinite):
                failures[key] = outcome
                shown.say(f"{key:>10}  not finite: no accuracy")
                continue
            done[key] = outcome
        row = done[key]
        shown.say(
            f"{key:>10}  {row['parameters']:>10,}  {row['top1']:>7.2f}  "
            + (f"{row['top5']:>7.2f}  " if many else "")
            + f"{row['predict_seconds']:>9.3f}  {row['test_seconds']:>6.1f}  {'█' * round(row['top1'] * _BAR / 100)}"
        )
    keys = [key for key, _ in selected if key not in failures]
    if not keys:
        raise next(iter(failures.values()))
    damaged = num_images - min(done[key].get("images", num_images) for key in keys)
    if damaged:
        shown.say(f"{damaged} damaged images do not count, see {damage.path}")
    outcomes = []
    for number in (1, 5) if many else (1,):
        accuracies = {key: done[key][f"top{number}"] for key in keys}
        summary = summarize(list(accuracies.values()), keys)
        outcomes.append((summary, accuracies))
        shown.say(
            f"top-{number} {summary.mean:.1f} ± {summary.standard_error:.1f} % (mean ± standard error of {len(keys)}), "
            f"max {summary.best:.1f} % at {summary.best_index} -> {path}"
        )
    if failures:
        raise NotFinite(
            f"{len(failures)} of {len(selected)} architectures ({', '.join(failures)}) have no accuracy and are not in "
            f"the mean: {next(iter(failures.values()))}"
        )
    return outcomes[-1]


def _default_path(options: EvaluateOptions, weights: str, dataset: str) -> pathlib.Path:
    part = f"-C{options.channels}" if options.channels else ""
    part += f"-{options.image_size}px" if options.image_size else ""
    part += f"-{options.num_images}images" if options.num_images else ""
    part += f"-noise{options.noise}" if options.noise else ""
    part += f"-{options.deepnets_dir.resolve().name}" if options.deepnets_dir else ""
    stem, dataset = pathlib.Path(options.ckpt).resolve().stem, re.sub(r"\W+", "_", dataset)
    return pathlib.Path(
        "runs", "eval", f"{stem}-{weights}-{dataset}-{options.split}{part}-seed{options.seed}.jsonl"
    )
