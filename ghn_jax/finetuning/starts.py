"""Where training starts from: parameters that are drawn, predicted by a GHN, or of an earlier run."""

import pathlib
import warnings
from typing import Any, NamedTuple

import jax
import numpy as np

from ghn_jax import pretrained
from ghn_jax.evaluation.results import checksum
from ghn_jax.finetuning.classifier import Classifier, logits_of, named, unnamed
from ghn_jax.finetuning.recipe import Recipe
from ghn_jax.models.before_training import add_noise, layer_names, orthogonalize
from ghn_jax.predict import predict_parameters
from ghn_jax.pretrained import TrainedGHN
from ghn_jax.pretrained.runs import load_weights
from ghn_jax.runtime.errors import called
from ghn_jax.runtime.outputs import runs_inside

RANDOM = "random"
"""The start that draws the parameters."""


class Start(NamedTuple):
    """A model's variables before the first step.

    Attributes:
      notes: what is to be said of them.
      source: tells the weights that they were made from apart from others.
    """

    variables: Any
    notes: tuple[str, ...]
    source: str


def make_start(
    init: str | pathlib.Path | TrainedGHN,
    model: Any,
    classifier: Classifier,
    sample_input: jax.ShapeDtypeStruct,
    recipe: Recipe,
) -> Start:
    """The start called `init`: "random"; a GHN, its name or path; or the work directory of an earlier fine-tuning.

    Where a GHN or an earlier run has other classes, the classification layer is drawn.

    Raises ValueError for a name that is none of these, and for an earlier run of another model.
    """
    key = jax.random.key(recipe.seed)
    if init == RANDOM:
        return Start(classifier.draw(key), (), RANDOM)
    if not isinstance(init, TrainedGHN):
        pretrained.check_name(init, "init", [RANDOM])
        path = pathlib.Path(init)
        if path.is_dir() and not (path / "checkpoints").exists():
            _name_runs_inside(path)
        if path.is_dir() and (path / "checkpoints").is_dir():
            with called("ckpt", "init"):
                saved, meta = load_weights(path)
            if "finetuned" in meta:
                num_classes = logits_of(classifier, sample_input).shape[-1]
                return _go_on(path, saved, classifier, classifier.draw(key), num_classes)
        with called("ckpt", "init"):
            init = pretrained.load(init)
    return _predicted(init, model, classifier, sample_input, recipe)


def _predicted(
    ghn: TrainedGHN, model: Any, classifier: Classifier, sample_input: jax.ShapeDtypeStruct, recipe: Recipe
) -> Start:
    num_classes = logits_of(classifier, sample_input).shape[-1]
    same = num_classes == ghn.config.num_classes
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        variables, report = predict_parameters(
            model, sample_input, ghn, seed=recipe.seed, predict_class_layers=same
        )
    notes = [str(warning.message) for warning in caught]
    if not same:
        notes.append(
            f"the GHN predicts {ghn.config.num_classes} classes, the model has {num_classes}: its last layer is drawn"
        )
    params, state = classifier.split(variables)
    predicted = {_public(name): name for name in named(params) if _public(name) not in report.unassigned}
    layers = [predicted[name] for name in layer_names(report.graph) if name in predicted]
    if recipe.noise:
        params = add_noise(params, recipe.noise, recipe.seed, layers=layers)
    if recipe.orthogonal:
        params = orthogonalize(params, layers=layers)
    return Start(classifier.join(params, state), (str(report), *notes), checksum(ghn.params))


def _name_runs_inside(path: pathlib.Path) -> None:
    """Raises ValueError for a directory of several runs, which names one of them."""
    if runs := runs_inside(path):
        raise ValueError(
            f"`init` (={str(path)!r}) holds {len(runs)} run{'s' * (len(runs) > 1)}: give one, as {str(runs[0])!r}"
        )


def _public(name: str) -> str:
    """A leaf's name as graphs have it."""
    return name.removesuffix(".value")


def _go_on(
    path: pathlib.Path, saved: dict[str, Any], classifier: Classifier, fresh: Any, num_classes: int
) -> Start:
    """The variables of an earlier run; a last layer for other classes is drawn."""
    params, state = classifier.split(fresh)
    notes, trees = [], []
    for tree, kind in ((params, "params"), (state, "state")):
        own, found = named(tree), saved.get(kind) or {}
        other = [
            name for name, leaf in own.items() if name not in found or np.shape(found[name]) != leaf.shape
        ]
        if own.keys() != found.keys() or not all(
            _of_classes(own[name], found[name], num_classes) for name in other
        ):
            different = sorted(set(other) | (own.keys() ^ found.keys()))
            raise ValueError(
                f"`init` (={str(path)!r}) is of another model ({different[0]} and {len(different) - 1} others differ): "
                "give the run of this one"
            )
        if other:
            notes.append(f"{' and '.join(other)}, for another number of classes, drawn")
        trees.append(unnamed(found | {name: own[name] for name in other}, tree))
    return Start(classifier.join(*trees), tuple(notes), checksum(saved))


def _of_classes(own: Any, found: Any, num_classes: int) -> bool:
    """Whether two tensors differ in nothing but the number of classes, as those of a last layer do."""
    different = [i for i, (a, b) in enumerate(zip(np.shape(own), np.shape(found), strict=False)) if a != b]
    return (
        np.ndim(own) == np.ndim(found) and len(different) == 1 and np.shape(own)[different[0]] == num_classes
    )
