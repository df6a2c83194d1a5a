"""Predicts third-party models, as their packages have them: is there a graph, and how many parameters are predicted?

    KERAS_BACKEND=jax python -m benchmarks.zoo --results=zoo.jsonl

An environment of its own is best; a package that is not installed is skipped:

    python -m pip install flaxmodels jax-resnet jaxnn dm-haiku equimo jaxonmodels keras kimm zeromodels keras-hub \
        torch torchvision torchax timm

No weights are downloaded, and the GHN is a fresh one: what is measured is whether a graph is found and which parameters
are predicted, not how well; nothing is computed. For each model that has running statistics: how many of them take
those of a batch (`fill_running_statistics`); with --numbers, which takes a minute a model, also the logits by the
statistics of a batch (`apply_by_batch`) against those of the model in evaluation once the same statistics are filled
in. Results are appended, one JSON object a line; models that are there already are skipped.
"""

import json
import pathlib
import re
import sys
import time
import warnings
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import tyro
from flax import nnx

from benchmarks.zoo.adapters import Entry
from benchmarks.zoo.models import entries
from ghn_jax import Function, TrainedGHN, apply_by_batch, fill_running_statistics, predict_parameters
from ghn_jax.models.config import preset
from ghn_jax.models.ghn import init_params
from ghn_jax.tracing import evaluation
from ghn_jax.tracing.models import trace
from ghn_jax.tracing.walk import Walked


def main(
    results: pathlib.Path = pathlib.Path("zoo.jsonl"),
    only: str = "",
    numbers: bool = False,
    table: bool = False,
) -> None:
    """Tries models and prints a line for each; exits with 1 if no graph is found for some model.

    Args:
      results: file of results, to which those of further models are appended.
      only: models whose package or name contain this.
      numbers: whether to run models that have running statistics.
      table: print the results that there are as Markdown, and try no model.
    """
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    if table:
        print(_table(rows))
        return
    known = {(row["package"], row["model"]) for row in rows if "difference" in row or not numbers}
    config = preset("ghn2", 1000, 224)
    ghn = TrainedGHN(config, init_params(config, jax.random.key(0)), {})
    failed = False
    for entry in entries():
        if only not in f"{entry.package} {entry.name}" or (entry.package, entry.name) in known:
            continue
        row = _try(entry, ghn, numbers)
        failed |= "error" in row
        print(json.dumps(row), flush=True)
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
    if failed:
        sys.exit(1)


def _try(entry: Entry, ghn: TrainedGHN, numbers: bool) -> dict[str, Any]:
    start = time.monotonic()
    row: dict[str, Any] = {"package": entry.package, "model": entry.name}
    try:
        row |= _measure(entry, ghn, numbers)
    except Exception as error:  # a table of all models is wanted, whatever one of them raises
        row["error"] = f"{type(error).__name__}: {error}".partition("\n")[0]
    return row | {"seconds": round(time.monotonic() - start, 1)}


def _measure(entry: Entry, ghn: TrainedGHN, numbers: bool) -> dict[str, Any]:
    model = entry.make()
    traced = trace(model, entry.images)
    walked = traced.walk()
    total = sum(int(np.prod(leaf.shape)) for leaf in traced.leaves)
    owned = sum(int(np.prod(owned.shape)) for owned in walked.extracted.owned)
    variables = _variables(model, entry)
    statistics = _num_statistics(model, variables, walked)
    row: dict[str, Any] = {
        "parameters": total,
        "percent": 100.0 * owned / total,
        "nodes": walked.extracted.graph.num_nodes,
        "unassigned": sorted(set(walked.extracted.unassigned.values())),
        "statistics": statistics,
    }
    if statistics:
        try:
            row["filled"] = _filled(model, variables, entry)
        except Exception as error:
            row["by_batch_error"] = f"{type(error).__name__}: {error}".partition("\n")[0]
    if numbers and statistics:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            predicted = predict_parameters(model, entry.images, ghn).variables
        row["difference"] = _difference(model, predicted, entry)
    return row


def _variables(model: Any, entry: Entry) -> Any:
    """A model's variables, or the model itself if it holds them."""
    if isinstance(model, Function):
        return {"params": model.params, "state": model.state}
    if isinstance(model, nnx.Module):
        return model
    keys, keywords = evaluation.random_keys(jax.random.key(0)), evaluation.keywords(type(model).__call__)
    shapes = jax.eval_shape(lambda x: model.init(keys, x, **keywords), entry.images)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def _num_statistics(model: Any, variables: Any, walked: Walked) -> int:
    """How many arrays are running statistics; a Linen module says so itself, and need not use them in its init."""
    if isinstance(model, nn.Module):
        return len(jax.tree.leaves(variables.get("batch_stats", {})))
    return len({leaf.index for norm in walked.norms for leaf in (norm.mean, norm.variance) if leaf})


def _filled(model: Any, variables: Any, entry: Entry) -> int:
    """How many arrays of state take statistics of a batch of images; nothing is computed."""
    count = 0

    def run(images: jax.Array) -> None:
        nonlocal count
        filled = fill_running_statistics(model, variables, images)
        count = sum(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(filled))

    jax.eval_shape(run, entry.images)
    return count


def _difference(model: Any, variables: Any, entry: Entry) -> float:
    """Largest difference between logits by batch and those by the same statistics filled in, over the largest logit."""
    images = jax.random.normal(jax.random.key(1), (4, *entry.shape))
    if isinstance(model, Function):

        @jax.jit
        def run(variables: Any) -> tuple[Any, Any]:
            filled = fill_running_statistics(model, variables, images)
            return apply_by_batch(model, variables, images), model.apply(*filled.values(), images)

        batch, own = run(variables)
    else:
        batch = apply_by_batch(model, variables, images)
        own = _in_evaluation(model, fill_running_statistics(model, variables, images), images)
    batch, own = np.asarray(jax.tree.leaves(batch)[0]), np.asarray(jax.tree.leaves(own)[0])
    return float(np.abs(batch - own).max() / np.abs(batch).max())


def _in_evaluation(model: Any, filled: Any, images: Any) -> Any:
    keywords = evaluation.keywords(type(model).__call__)
    if isinstance(model, nnx.Module):
        return filled(images, **keywords)
    assert isinstance(model, nn.Module)
    keys = evaluation.random_keys(jax.random.key(0))
    return evaluation.linen_in_evaluation(model).apply(filled, images, rngs=keys, **keywords)


def _table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each package, then one for each model."""
    latest: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        latest.setdefault((row["package"], row["model"]), {}).update(row)
    models = list(latest.values())
    packages = {package: [row for row in models if row["package"] == package] for package, _ in latest}
    lines = ["| package | models | with a graph | 99 % predicted | with statistics | filled by batch |"]
    lines.append("|---|---|---|---|---|---|")
    lines += [_summary(package, own) for package, own in packages.items()]
    lines += [_summary("all", models), ""]
    lines.append("| package | model | parameters | predicted | nodes | statistics by batch | why not all |")
    lines.append("|---|---|---|---|---|---|---|")
    return "\n".join([*lines, *map(_line, models)])


def _summary(name: str, rows: list[dict[str, Any]]) -> str:
    found = [row for row in rows if "error" not in row]
    most = sum(row["percent"] >= 99 for row in found)
    batched = [row for row in found if row.get("statistics")]
    filled = sum(row.get("filled") == row["statistics"] for row in batched)
    return f"| {name} | {len(rows)} | {len(found)} | {most} | {len(batched)} | {filled} |"


def _line(row: dict[str, Any]) -> str:
    name = f"| {row['package']} | {row['model']} "
    if "error" in row:
        return f"{name}| fails | | | | {row['error']} |"
    by_batch = f"{row.get('filled', 0)} of {row['statistics']}" if row.get("statistics") else ""
    if "difference" in row:
        by_batch += f", logits within {row['difference']:.0e}"
    reasons = {re.sub(r"layer '[^']*'", "a layer", reason) for reason in row["unassigned"]}
    why = "; ".join([*sorted(reasons), *filter(None, [row.get("by_batch_error")])])
    return f"{name}| {row['parameters']:,} | {row['percent']:.2f} % | {row['nodes']} | {by_batch} | {why} |"


if __name__ == "__main__":
    tyro.cli(main)
