"""Evaluates a GHN on one model, named or imported, through its jaxpr."""

import pathlib
import time
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx

from ghn_jax import pretrained
from ghn_jax.deepnets.networks import from_batch_stats, from_params
from ghn_jax.evaluation import results
from ghn_jax.evaluation.accuracy import BATCH_SIZE, Logits, NotFinite, accuracy
from ghn_jax.evaluation.options import EvaluateOptions, count_images, images_header, open_images
from ghn_jax.graphs import draw
from ghn_jax.images.damage import DamageList
from ghn_jax.images.resident import ImageDataset
from ghn_jax.images.sources import StreamedDataset
from ghn_jax.predict import predict_parameters
from ghn_jax.runtime import late_callbacks, outputs
from ghn_jax.runtime.errors import called
from ghn_jax.runtime.extras import extra
from ghn_jax.runtime.status import Status
from ghn_jax.targets import NAMES, target, variant
from ghn_jax.targets.importing import import_model
from ghn_jax.tracing.batch_norm import apply_by_batch
from ghn_jax.tracing.outputs import leaf_name


def evaluate_model(options: EvaluateOptions) -> None:
    """Predicts the parameters of a model; prints counts, seconds and top-1 accuracy; draws and exports it.

    Raises ValueError for a model that cannot be imported or predicted, and for files that cannot be written.
    """
    with Status() as shown:
        _evaluate_model(options, shown)


def _evaluate_model(options: EvaluateOptions, shown: Status) -> None:
    assert options.arch
    shown.doing(f"loading {options.ckpt} and images")
    ghn = pretrained.load(options.ckpt)
    name, dataset = open_images(options, ghn.info)
    num_images = count_images(options, dataset)
    header = {
        "ckpt": options.ckpt,
        "weights": results.checksum(ghn.params),
        "dataset": name,
        "split": options.split,
    }
    header |= images_header(options, dataset)
    header |= {"images": options.num_images} if options.num_images else {}
    header |= {"noise": options.noise} if options.noise else {}
    done = results.open_results(options.results, header) if options.results else {}
    shown.doing(f"predicting the parameters of {options.arch}")
    model = _model(options.arch, dataset)
    sample = jax.ShapeDtypeStruct((1, dataset.image_size, dataset.image_size, 3), jnp.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with called("ghn", "ckpt"), called("model", "arch"):
            variables, report = predict_parameters(model, sample, ghn)
    shown.say(
        f"{options.ckpt} {results.training(ghn.info)}: {options.arch} for {name}, {report.graph.num_nodes} nodes"
    )
    for note in dataset.notes:
        shown.say(f"note: {note}")
    shown.say(str(report))
    for warning in caught:
        shown.say(f"note: {warning.message}")
    _check_finite(options.arch, variables)
    if options.draw is not None:
        draw(report.graph, options.draw)
    if options.export is not None:
        export(variables, options.export, public_names=options.arch in NAMES)
    start = time.monotonic()
    split = "val" if options.split == "val" else "test"

    def testing(batches: int = 0) -> None:
        shown.doing(
            f"testing {options.arch}, {min(batches * BATCH_SIZE, num_images):,} of {num_images:,} images"
        )

    testing()
    tested = accuracy(
        _logits(model, variables, report.output or 0),
        dataset,
        split,
        num_images,
        num_workers=options.num_workers,
        noise=options.noise,
        name=options.arch,
        done=testing,
    )
    shown.say(
        f"top-1 {tested.top1:.2f} %, top-5 {tested.top5:.2f} % on {tested.num_images} {name} images "
        f"(batch statistics of {BATCH_SIZE}), {time.monotonic() - start:.1f} s"
    )
    if tested.damaged:
        damage = DamageList(options.results.with_suffix(".damaged.txt") if options.results else None)
        damage.add(tested.damaged)
        where = f"see {damage.path}" if damage.path else f"the first is {tested.damaged[0]}"
        shown.say(f"{len(tested.damaged)} damaged images do not count, {where}")
    if options.results is not None and options.arch not in done:
        row = {
            "arch": options.arch,
            "parameters": report.parameters,
            "top1": tested.top1,
            "top5": tested.top5,
            "predict_seconds": round(sum(report.seconds.values()), 4),
        }
        results.append(options.results, row)


def _check_finite(arch: str, variables: Any) -> None:
    leaves = jax.tree.leaves_with_path(variables)
    bad = [leaf_name(key) for key, leaf in leaves if not np.isfinite(np.asarray(leaf)).all()]
    if bad:
        raise NotFinite(
            f"{len(bad)} predicted parameters of {arch} are not finite, as {bad[0]}: nothing was tested or written"
        )


def export(variables: Any, path: pathlib.Path, public_names: bool) -> None:
    """Writes predicted parameters.

    Args:
      variables: what `predict_parameters` returned.
      path: FILE.safetensors for the parameters, or a new directory for an Orbax checkpoint of all variables.
      public_names: whether a .safetensors file has PyTorch's names and layouts, and running statistics, which its
        loading asks for, for models of `ghn_jax.targets`; else it has the model's own.
    """
    if isinstance(variables, nnx.Module):
        state = nnx.to_pure_dict(nnx.state(variables, nnx.BatchStat))
        params = nnx.to_pure_dict(nnx.state(variables, nnx.Param))
        variables = {"params": params, **({"batch_stats": state} if state else {})}
    if path.suffix != ".safetensors":
        with extra("train"):
            import orbax.checkpoint as ocp  # takes a second to import

        with late_callbacks.unheard(), ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), variables)
        return
    has_params = isinstance(variables, Mapping) and "params" in variables
    params = variables["params"] if has_params else variables
    if public_names:
        tensors = {**from_params(params), **from_batch_stats(variables.get("batch_stats", {}))}
    else:
        tensors = {leaf_name(key): value for key, value in jax.tree.leaves_with_path(params)}
    tensors = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    outputs.write(path, safetensors.numpy.save(tensors))


def _model(arch: str, dataset: ImageDataset | StreamedDataset) -> Any:
    """The model called `arch`, with as many classes as the dataset has where it is named."""
    if arch in NAMES:
        return target(arch, dataset.num_classes, variant(dataset.image_size))
    return import_model(arch)


def _logits(model: Any, variables: Any, output: int) -> Logits:
    """The function from images to logits, a leaf of the model's outputs; batch norm by the statistics of the images."""
    if isinstance(variables, nnx.Module):
        definition, variables = nnx.split(variables)

        def outputs(variables: Any, x: jax.Array) -> Any:
            return apply_by_batch(None, nnx.merge(definition, variables), x)
    else:

        def outputs(variables: Any, x: jax.Array) -> Any:
            return apply_by_batch(model, variables, x)

    logits = jax.jit(lambda variables, x: jax.tree.leaves(outputs(variables, x))[output])
    return lambda x: logits(variables, x)
