"""Predicts properties of architectures from a GHN's embeddings: `python -m ghn_jax.studies.properties --results=FILE`.

A support vector regression on the mean node embedding [1], against simpler guesses; judged by Kendall's tau.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021, Section 5.2, and its code,
    experiments/property_prediction.py: the grid of the regression.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ghn_jax import pretrained
from ghn_jax.deepnets import sampling
from ghn_jax.deepnets.architectures import Architecture
from ghn_jax.deepnets.image_sizes import CIFAR_SIZE, IMAGENET_SIZE
from ghn_jax.deepnets.lowering import lower
from ghn_jax.deepnets.stored import open_split
from ghn_jax.pretrained import TrainedGHN
from ghn_jax.runtime import commands, devices
from ghn_jax.runtime.errors import check_range
from ghn_jax.runtime.extras import extra
from ghn_jax.studies.embeddings import graph_embeddings
from ghn_jax.studies.rank import Tau, kendall

GRID = {
    "kernel": ["rbf"],
    "C": [1, 10, 50, 100, 200, 500, 1000],
    "gamma": ["auto", 0.05, 0.1, 0.2, 0.5],
    "epsilon": [0.05, 0.1, 0.2],
}
"""Settings of the regression among which cross-validation chooses, as published [1]."""

PROPERTIES = ("accuracy", "noisy accuracy", "inference time", "convergence time")
"""What is predicted, in percent, percent, milliseconds and percent of the steps."""

_OFFICIAL = {
    "accuracy": ("val_acc", 1.0),
    "noisy accuracy": ("val_acc_noise", 1.0),
    "inference time": ("time", 1.0),
    "convergence time": ("converge_time", 100.0),
}
"""Where the public files have them, and the factor to our units."""


@dataclasses.dataclass(frozen=True)
class PropertyOptions:
    """Predicts four properties of trained architectures from the embeddings of their graphs."""

    results: pathlib.Path
    """What `ghn_jax.studies.baselines` wrote; or a public results_cifar10.json, whose val split then teaches."""
    ckpt: str = "ghn2-digits"
    """The GHN that embeds graphs: a bundled one, a .safetensors file, or the work directory of a training run."""
    nets: pathlib.Path | None = None
    """Directory of the official DeepNets-1M files, to which public results belong."""
    folds: int = 5
    """Of cross-validation. Without a val split, each part of the architectures is predicted from the others."""
    seed: int = 0
    """Of the folds and the intervals."""


class Truth(NamedTuple):
    """Measured architectures.

    Attributes:
      graphs: one for each.
      values: of each property.
      guesses: what predicts as well without a regression: number of parameters, accuracy with predicted parameters.
    """

    graphs: list[Any]
    values: dict[str, np.ndarray]
    guesses: dict[str, np.ndarray]


def properties(options: PropertyOptions) -> dict[str, dict[str, Tau]]:
    """Prints and returns Kendall's tau of each property, by way of predicting it.

    Raises ValueError for a file that is none of the two kinds, and for too few architectures.
    """
    check_range("folds", options.folds, 2)
    check_range("seed", options.seed, 0)
    ghn = pretrained.load(options.ckpt)
    teach, test = read_truth(options)
    found = predict_properties(ghn, teach, test, options.folds, options.seed)
    how = f"taught by {len(teach.graphs)} others" if teach else f"in {options.folds} folds"
    print(f"Kendall's tau (95 % interval) on {len(test.graphs)} architectures, {how}")
    ways = list(next(iter(found.values())))
    print(f"{'':>18}" + "".join(f"{way:>24}" for way in ways))
    for name, taus in found.items():
        print(f"{name:>18}" + "".join(f"{taus[way]!s:>24}" for way in ways))
    return found


def predict_properties(
    ghn: TrainedGHN, teach: Truth | None, test: Truth, folds: int, seed: int
) -> dict[str, dict[str, Tau]]:
    """Kendall's tau of each property, by way of predicting it.

    Args:
      teach: architectures to fit the regression to; None predicts each fold of `test` from the others.
    """
    if folds < 2 or len(test.graphs) < 2 * folds:
        raise ValueError(
            f"`folds` (={folds}) needs at least twice as many architectures, and there are {len(test.graphs)}: train "
            "more, or lower it (2 at least)"
        )
    embedded = graph_embeddings(ghn, test.graphs)
    taught = graph_embeddings(ghn, teach.graphs) if teach else None
    found = {}
    for name in PROPERTIES:
        wanted = test.values[name]
        if teach is None or taught is None:
            predicted = _across_folds(embedded, wanted, folds, seed)
        else:
            predicted = fit(taught, teach.values[name], folds, seed)(embedded)
        found[name] = {"SVR": kendall(predicted.tolist(), wanted.tolist(), seed=seed)}
        for way, guess in test.guesses.items():
            found[name][way] = kendall(guess.tolist(), wanted.tolist(), seed=seed)
    return found


Regression = Callable[[Float[np.ndarray, "graph c"]], Float[np.ndarray, " graph"]]


def fit(x: Float[np.ndarray, "graph c"], y: Float[np.ndarray, " graph"], folds: int, seed: int) -> Regression:
    """The regression with the settings of `GRID` that cross-validation finds best."""
    with extra("train"):
        from sklearn.model_selection import GridSearchCV, KFold
        from sklearn.svm import SVR

    search = GridSearchCV(SVR(), GRID, cv=KFold(folds, shuffle=True, random_state=seed))
    return search.fit(x, y).predict


def _across_folds(
    x: Float[np.ndarray, "graph c"], y: Float[np.ndarray, " graph"], folds: int, seed: int
) -> Float[np.ndarray, " graph"]:
    order = np.random.default_rng(seed).permutation(len(y))
    predicted = np.empty(len(y))
    for part in np.array_split(order, folds):
        others = np.setdiff1d(order, part)
        predicted[part] = fit(x[others], y[others], folds, seed)(x[part])
    return predicted


def read_truth(options: PropertyOptions) -> tuple[Truth | None, Truth]:
    """Architectures to learn from, if the file tells them apart, and to test on."""
    try:
        text = options.results.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"`results` (={str(options.results)!r}) cannot be read ({error}): write it with python -m "
            "ghn_jax.studies.baselines"
        ) from error
    try:
        lines = [json.loads(line) for line in text.splitlines() if line]
    except json.JSONDecodeError as error:
        raise ValueError(f"`results` (={str(options.results)!r}) is damaged: {error}") from error
    if not all(isinstance(line, dict) for line in lines):
        raise ValueError(
            f"`results` (={str(options.results)!r}) is of something else: its lines are no JSON objects"
        )
    if len(lines) == 1 and {"val", "test"} <= lines[0].keys():
        return _official(options, lines[0], "val"), _official(options, lines[0], "test")
    if not lines or "test_noise" not in lines[0]:
        raise ValueError(
            f"`results` (={str(options.results)!r}) is no file of ghn_jax.studies.baselines, nor public results with "
            "the splits val and test"
        )
    return None, _own(lines[0], lines[1:])


def _own(header: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Truth:
    def graph(row: dict[str, Any]) -> Any:
        size = header["image_size"]
        arch = sampling.sample(header["split"], int(row["arch"]), header["seed"], size)
        return lower(dataclasses.replace(arch, C=header["channels"] or arch.C), image_size=size).graph

    values = [
        (
            row["top1"][max(row["top1"], key=int)],
            row["noisy_top1"],
            1000 * row["inference_seconds"],
            100 * row["convergence"],
        )
        for row in rows
    ]
    return Truth(
        [graph(row) for row in rows],
        dict(zip(PROPERTIES, np.array(values, float).reshape(-1, len(PROPERTIES)).T, strict=True)),
        {
            "number of parameters": np.array([row["parameters"] for row in rows], float),
            # None, of logits that are not finite, ranks last
            "accuracy by the GHN": np.array([row["ghn_top1"] or 0.0 for row in rows], float),
        },
    )


def _official(options: PropertyOptions, results: dict[str, Any], split: str) -> Truth:
    """Public results of a split; an accuracy may be a list, over epochs, of which the last counts."""
    if options.nets is None:
        raise ValueError(
            "`nets` (=None) must be the directory of the official DeepNets-1M files, for public results"
        )
    imagenet = "imagenet" in options.results.name
    size = IMAGENET_SIZE if imagenet else CIFAR_SIZE
    rows = results[split]
    nets: Sequence[Architecture] = open_split(options.nets, split, size)
    graphs = [lower(nets[int(index)], 1000 if imagenet else 10, size).graph for index in rows]

    def column(key: str, factor: float = 1.0) -> np.ndarray:
        try:
            found = [row[key][-1] if isinstance(row[key], list) else row[key] for row in rows.values()]
        except KeyError as error:
            raise ValueError(
                f"`results` (={str(options.results)!r}) lacks {error} in the split {split!r}"
            ) from error
        return factor * np.array(found, float)

    guesses = {"number of parameters": column("params"), "accuracy by the GHN": column("ghn2_test_acc")}
    return Truth(graphs, {name: column(*_OFFICIAL[name]) for name in PROPERTIES}, guesses)


def _main(options: PropertyOptions) -> None:
    devices.check()
    properties(options)


if __name__ == "__main__":
    commands.run(PropertyOptions, _main)
