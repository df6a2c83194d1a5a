"""Where training starts from: parameters that are drawn, predicted by a GHN, or of an earlier run.

[1] Knyazev, Pretraining a Neural Network before Knowing Its Architecture, ICML 2022 workshop (arXiv 2207.10049): noise
    and orthogonalisation for fine-tuning.
"""

import pathlib
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ghn_jax import pretrained
from ghn_jax.finetuning.classifier import Classifier, named, unnamed
from ghn_jax.finetuning.recipe import Recipe
from ghn_jax.predict import predict_parameters
from ghn_jax.pretrained import TrainedGHN
from ghn_jax.pretrained.runs import load_weights

RANDOM = "random"
"""The start that draws the parameters."""


class Start(NamedTuple):
    """A model's variables before the first step, and what is to be said of them."""

    variables: Any
    notes: tuple[str, ...]


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
        return Start(classifier.draw(key), ())
    if not isinstance(init, TrainedGHN):
        path = pathlib.Path(init)
        if path.is_dir() and (path / "checkpoints").is_dir():
            saved, meta = load_weights(path)
            if "finetuned" in meta:
                return _go_on(path, saved, classifier, classifier.draw(key))
        init = pretrained.load(init)
    return _predicted(init, model, classifier, sample_input, recipe)


def _predicted(
    ghn: TrainedGHN, model: Any, classifier: Classifier, sample_input: jax.ShapeDtypeStruct, recipe: Recipe
) -> Start:
    logits = jax.eval_shape(lambda: _logits(classifier, sample_input))
    num_classes = logits.shape[-1]
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
    if recipe.noise or recipe.orthogonal:
        weights = [i for i, shape in enumerate(report.graph.shapes) if shape is not None and len(shape) > 1]
        last = report.graph.names[weights[-1]] if weights else None
        params = _changed(params, {*report.unassigned, last}, recipe)
    return Start(classifier.join(params, state), (str(report), *notes))


def _logits(classifier: Classifier, sample_input: jax.ShapeDtypeStruct) -> Array:
    variables = classifier.draw(jax.random.key(0))
    return classifier.evaluate(
        *classifier.split(variables), jnp.zeros(sample_input.shape, sample_input.dtype)
    )


def _changed(params: Any, kept: set[str | None], recipe: Recipe) -> Any:
    """Weights of convolutions and linear layers with noise, then orthogonal, as in the public code [1]."""
    generator = np.random.default_rng(recipe.seed)
    leaves = {}
    for name, leaf in named(params).items():
        weight = np.asarray(leaf)
        if weight.ndim in (2, 4) and name not in kept:
            matrix = weight.reshape(-1, weight.shape[-1])
            if recipe.noise:
                matrix = matrix + recipe.noise * _spread(matrix) * generator.standard_normal(matrix.shape)
            if recipe.orthogonal:
                matrix = orthogonal(matrix)
            weight = matrix.reshape(weight.shape).astype(weight.dtype)
        leaves[name] = weight
    return unnamed(leaves, params)


def _spread(matrix: Float[np.ndarray, "row column"]) -> float:
    """Standard deviation of the correlations between the vectors along the longer side."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    return float(np.nan_to_num(np.corrcoef(tall)).std())


def orthogonal(matrix: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "row column"]:
    """The factor Q of a matrix, or of its transpose if it is wide, with a positive diagonal of R."""
    wide = matrix.shape[0] < matrix.shape[1]
    q, r = np.linalg.qr(matrix.T if wide else matrix)
    q = q * np.sign(np.diag(r))
    return q.T if wide else q


def _go_on(path: pathlib.Path, saved: dict[str, Any], classifier: Classifier, fresh: Any) -> Start:
    """The variables of an earlier run; a last layer for other classes is drawn."""
    params, state = classifier.split(fresh)
    notes, trees = [], []
    for tree, kind in ((params, "params"), (state, "state")):
        own, found = named(tree), saved.get(kind) or {}
        other = [
            name for name, leaf in own.items() if name not in found or np.shape(found[name]) != leaf.shape
        ]
        if own.keys() != found.keys() or len(other) > 2:
            different = sorted(set(other) | (own.keys() ^ found.keys()))
            raise ValueError(
                f"`init` (={str(path)!r}) is of another model ({different[0]} and {len(different) - 1} others differ): "
                "give the run of this one"
            )
        if other:
            notes.append(f"{' and '.join(other)}, for another number of classes, drawn")
        trees.append(unnamed(found | {name: own[name] for name in other}, tree))
    return Start(classifier.join(*trees), tuple(notes))
