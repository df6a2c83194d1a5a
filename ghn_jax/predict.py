"""Predicts all parameters of any JAX classifier, without training it.

import ghn_jax
import jax.numpy as jnp

model = ghn_jax.target("resnet50", num_classes=10, image_size=32)
variables, report = ghn_jax.predict_parameters(model, jnp.zeros((1, 32, 32, 3)))
logits = ghn_jax.apply_by_batch(model, variables, images)
"""

import contextlib
import dataclasses
import functools
import gc
import os
import pathlib
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ghn_jax import pretrained
from ghn_jax.graphs import Graph, batch
from ghn_jax.models import assembly, tensor_decoder
from ghn_jax.models.config import GHNConfig
from ghn_jax.models.ghn import GHN, encode
from ghn_jax.pretrained import TrainedGHN
from ghn_jax.runtime.errors import called
from ghn_jax.tracing.builder import Extracted
from ghn_jax.tracing.errors import UnsupportedModel
from ghn_jax.tracing.evaluation import default_settings
from ghn_jax.tracing.models import Traced, trace
from ghn_jax.tracing.walk import Walked


@dataclasses.dataclass(frozen=True)
class Report:
    """What was predicted.

    Attributes:
      parameters: number of predicted parameters.
      tensors: number of predicted tensors.
      unassigned: why each other tensor keeps its own initialisation, by name.
      output: which of the model's outputs are the logits, a leaf of what it returns; None for a headless model.
      graph: the computational graph.
      node_embeddings: what the GHN knows of each node.
      seconds: spent on each part: 'trace', 'graph', 'predict' (embed and decode), 'assemble'.
    """

    parameters: int
    tensors: int
    unassigned: Mapping[str, str]
    output: int | None
    graph: Graph
    node_embeddings: Float[np.ndarray, "node c"]
    seconds: Mapping[str, float]

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in self.seconds.items())
        kept = f", {_keep(len(self.unassigned), 'tensor')}" if self.unassigned else ""
        return f"{self.parameters:,} parameters in {self.tensors} tensors predicted{kept} ({parts})"


class Prediction(NamedTuple):
    """A model's predicted parameters, and a report.

    Attributes:
      variables: for a Linen module its variables, {'params': ...} and other collections as initialised, with the
        predicted parameters where they are computed from parameters; for an NNX module a filled copy of it, whose
        state is as it was; for a function its tree of parameters.
      report: what was predicted.
    """

    variables: Any
    report: Report


def predict_parameters(
    model: Any,
    sample_input: Any,
    ghn: TrainedGHN | str | pathlib.Path | None = None,
    *,
    seed: int = 0,
    strict: bool = False,
    predict_class_layers: bool = True,
    headless: bool = False,
    logits: str | None = None,
) -> Prediction:
    """Predicts the parameters of a classifier: a Flax Linen or NNX module, or a `ghn_jax.Function`.

    Args:
      model: the model; an NNX module is left as it is.
      sample_input: images as the model takes them, batch axis first, or their jax.ShapeDtypeStruct; only the
        shape counts.
      ghn: a loaded GHN, the path of one, or the name of a bundled one.
      seed: of the model's own initialisation, which parameters keep that a GHN cannot predict.
      strict: whether such parameters are an error.
      predict_class_layers: False leaves the classification layers as initialised, for fine-tuning on other classes.
      headless: for a model without classification layer, of outputs of any shape: all of its layers are predicted.
      logits: name of the output that are the logits, where there are several outputs and none is called so.

    Raises ValueError: UnsupportedModel if the graph of the model cannot be found, or `strict` and some parameter
    cannot be predicted; and if the GHN is for another number of classes.
    """
    if headless and (logits is not None or not predict_class_layers):
        given = f"`logits` (={logits!r})" if logits is not None else "`predict_class_layers` (=False)"
        raise ValueError(f"{given} has no effect with headless=True: leave one of them out")
    if seed < 0:
        raise ValueError(f"`seed` (={seed}) must not be negative")
    if not isinstance(ghn, TrainedGHN | str | os.PathLike | None):
        raise ValueError(
            f"`ghn` (a {type(ghn).__name__}) is no GHN: give a name, a path, or what ghn_jax.load returns"
        )
    heads = Heads("none" if headless else "predict" if predict_class_layers else "keep", logits)
    try:
        with _no_garbage_collection(), default_settings(), _outside_traces():
            return _predict(model, sample_input, ghn, seed, strict, heads)
    except jax.errors.TracerArrayConversionError as error:
        held = "ghn" if isinstance(ghn, TrainedGHN) and _is_traced(ghn.params) else "model"
        raise ValueError(
            f"`{held}` holds arrays that jax traces, whose values are not known yet: make it outside jax.jit, "
            "jax.grad or jax.vmap, and call predict_parameters there"
        ) from error


def _outside_traces() -> contextlib.AbstractContextManager[None]:
    """Inside jax.jit, computes all the same at once: a prediction depends on shapes alone, so is a constant there."""
    # Not otherwise: it folds constants of what is traced, so that all would be compiled again.
    return jax.ensure_compile_time_eval() if _is_traced(jnp.zeros(())) else contextlib.nullcontext()


def _is_traced(tree: Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


class Heads(NamedTuple):
    """What to do with the classification layers, and which output they make."""

    what: Literal["predict", "keep", "none"]
    logits: str | None


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Tracing makes very many objects, which live to its end: to look for garbage meanwhile is slow, and in vain."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _predict(
    model: Any,
    sample_input: Any,
    ghn: TrainedGHN | str | pathlib.Path | None,
    seed: int,
    strict: bool,
    heads: Heads,
) -> Prediction:
    start = time.perf_counter()
    with called("ckpt", "ghn"):
        loaded = ghn if isinstance(ghn, TrainedGHN) else pretrained.load(ghn or pretrained.DEFAULT)
    traced = trace(model, sample_input, seed, logits=heads.logits, headless=heads.what == "none")
    traced_at = time.perf_counter()
    walked = traced.walk()
    extracted = _settle_class_layers(walked, loaded.config, heads.what)
    _note_unassigned(extracted, traced, strict)
    graph = encode(_as_trained(extracted, loaded.config, heads.what), loaded.config)
    graph_at = time.perf_counter()
    nodes = _embed(loaded, graph)
    decoded = tensor_decoder.decode(loaded.config, loaded.params["decoder"], nodes, extracted)
    decoded_at = time.perf_counter()
    incomplete = sorted({leaf.index for leaf in extracted.unassigned})
    tensors = assembly.assemble(
        loaded.config,
        decoded,
        extracted,
        traced.leaves,
        traced.initial(incomplete) if incomplete else {},
        seed,
    )
    variables = traced.rebuild(jax.device_put(tensors))
    end = time.perf_counter()
    report = Report(
        parameters=sum(int(np.prod(owned.shape)) for owned in extracted.owned),
        tensors=len({owned.leaf.index for owned in extracted.owned}),
        unassigned={leaf.name(traced.names): why for leaf, why in extracted.unassigned.items()},
        output=walked.output,
        graph=extracted.graph,
        node_embeddings=np.asarray(nodes)[: extracted.graph.num_nodes],
        seconds={
            "trace": traced_at - start,
            "graph": graph_at - traced_at,
            "predict": decoded_at - graph_at,
            "assemble": end - decoded_at,
        },
    )
    return Prediction(variables, report)


def graph_of(model: Any, sample_input: Any, *, headless: bool = False, logits: str | None = None) -> Graph:
    """The computational graph of a model; arguments and errors as in `predict_parameters`."""
    with default_settings(), _outside_traces():
        return trace(model, sample_input, logits=logits, headless=headless).walk().extracted.graph


def _embed(ghn: TrainedGHN, graph: Any) -> Float[Array, "node c"]:
    graphs = batch([graph])
    return _embed_jitted(ghn.config, graphs.max_nodes, ghn.params, graphs.graphs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _embed_jitted(config, max_nodes, params, graphs):
    return GHN(config).apply({"params": params}, graphs, max_nodes, method=GHN.embed)[0]


def _settle_class_layers(walked: Walked, config: GHNConfig, what: str) -> Extracted:
    """Checks that the GHN predicts as many classes as the model has, or leaves its last layers out."""
    extracted = walked.extracted
    if what == "none":
        return extracted
    if what == "keep":
        if not extracted.class_nodes:
            raise UnsupportedModel(
                "`predict_class_layers` (=False) needs a classification layer, and none is found before the output: "
                "leave it out, or give headless=True"
            )
        kept = tuple(o for o in extracted.owned if o.node not in extracted.class_nodes)
        reason = "is of the classification layer"
        left = {o.leaf: reason for o in extracted.owned if o.node in extracted.class_nodes}
        return extracted._replace(owned=kept, unassigned={**extracted.unassigned, **left})
    if walked.labels != config.num_classes:
        names = [extracted.graph.names[node] for node in extracted.class_nodes]
        layer = f"last layer ({names[0]})" if names else "output"
        raise ValueError(
            f"`ghn` predicts {config.num_classes} classes and the model's {layer} has {walked.labels}: use a "
            f"GHN for {walked.labels} classes, or a model with {config.num_classes}; in Python also "
            "predict_class_layers=False to leave that layer out, or headless=True for a model without one"
        )
    return extracted


def _as_trained(extracted: Extracted, config: GHNConfig, what: str) -> Graph:
    """The graph that the GHN reads: a classification layer that is not predicted looks like that of its own dataset."""
    graph = extracted.graph
    if what != "keep":
        return graph
    shapes = list(graph.shapes)
    for node in extracted.class_nodes:
        shape = shapes[node]
        assert shape
        shapes[node] = (config.num_classes, *shape[1:])
    return graph._replace(shapes=tuple(shapes))


def _note_unassigned(extracted: Extracted, traced: Traced, strict: bool) -> None:
    if not extracted.unassigned:
        return
    listed = [f"{leaf.name(traced.names)} {why}" for leaf, why in extracted.unassigned.items()]
    if strict:
        raise UnsupportedModel(
            f"`strict` (=True), and {len(listed)} parameters cannot be predicted: {'; '.join(listed)}"
        )
    warnings.warn(f"{_keep(len(listed), 'parameter')}: {'; '.join(listed)}", stacklevel=4)


def _keep(number: int, what: str) -> str:
    subject = f"1 {what} keeps its" if number == 1 else f"{number} {what}s keep their"
    return f"{subject} own initialisation"
