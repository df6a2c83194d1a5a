"""Compares this project with figures that the public PyTorch code computed, on deterministic weights.

    python -m benchmarks.parity --golden DIR

DIR holds `deepnets_cifar10.json.gz` and `deepnets_imagenet.json.gz` (graphs, parameter counts, predicted
parameters, logits), `torchvision.json.gz` (the same of named models, through their jaxpr, without logits) and
`train_steps.json` (meta-training steps); what is missing is skipped. Prints, per file, the number of cases and the
worst relative error of each quantity, and exits with 1 if one is above its tolerance.
"""

import gzip
import json
import pathlib
import sys
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from ghn_jax.deepnets.architectures import Architecture
from ghn_jax.deepnets.lowering import lower
from ghn_jax.deepnets.networks import CellNetwork, from_params, to_params
from ghn_jax.evaluation.accuracy import predict_flat
from ghn_jax.executor import run
from ghn_jax.executor.layouts import unflatten
from ghn_jax.graphs import PRIMITIVES, Graph, path_lengths
from ghn_jax.models.config import GHNConfig, preset
from ghn_jax.models.templates import deepnets_templates
from ghn_jax.predict import predict_parameters
from ghn_jax.pretrained import TrainedGHN, public_names
from ghn_jax.targets import NAMES, target
from ghn_jax.training import meta, prepare
from ghn_jax.training.pmapped import replicate

TOLERANCE = {
    "graphs": 0.0,
    "parameter counts": 0.0,
    "predicted parameters": 1e-4,
    "logits, executor": 1e-3,
    "logits, plain module": 1e-3,
    "loss, step 1": 1e-4,
    "loss, step 2": 5e-3,
    "gradient norms, step 1": 5e-3,
    "gradient norms, in float64": 1e-3,
}
"""Largest relative error allowed of each quantity (of the first two: share of cases that differ)."""

SIZES = {"cifar10": (10, 32), "imagenet": (1000, 224)}

WITHOUT_POOL = ("shufflenet_v2_x1_0", "mnasnet1_0")
"""Models whose global pool, a mean over two axes, the public graphs lack; here every global pool is a node."""

Errors = dict[str, list[float]]


def main(golden: pathlib.Path, limit: int | None = None) -> None:
    """Checks a folder.

    Args:
      golden: the folder.
      limit: only the first so many networks of each file.
    """
    checks = {
        "deepnets_cifar10.json.gz": lambda path: network_errors(load(path)[:limit], "cifar10"),
        "deepnets_imagenet.json.gz": lambda path: network_errors(load(path)[:limit], "imagenet"),
        "torchvision.json.gz": lambda path: target_errors(load(path)[:limit]),
        "train_steps.json": lambda path: training_errors(
            load(path), load(path.with_name("train_steps_nets.json"))
        ),
    }
    failed = False
    for name, check in checks.items():
        path = golden / name
        if not path.exists():
            print(f"{name}: not there, skipped")
            continue
        print(f"{name}:", flush=True)
        for quantity, errors in check(path).items():
            worst, tolerance = max(errors), TOLERANCE[quantity]
            verdict = "ok" if worst <= tolerance else "ABOVE TOLERANCE"
            failed |= not worst <= tolerance
            print(
                f"  {quantity:26} {len(errors):4} cases, worst {worst:.1e} (at most {tolerance:.0e}) {verdict}"
            )
    if failed:
        sys.exit(1)


def load(path: pathlib.Path) -> Any:
    """Reads JSON, gzipped or not."""
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)


def golden_params(config: GHNConfig) -> dict[str, Any]:
    """The deterministic weights of the golden figures, in this project's tree."""
    return public_names.from_state_dict(
        config, {n: fill(n, s) for n, s in public_names.state_dict_shapes(config).items()}
    )


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The golden value of a public weight: normals seeded by its name, scaled by its kind."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if "embed" in name:
        values *= 0.5
    elif name.endswith("ln.weight") or ".ln1.weight" in name or ".ln2.weight" in name:
        values = 1.0 + 0.1 * values
    else:
        values *= 1.0 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.05
    return values.astype(np.float32)


# -- networks ----------------------------------------


def network_errors(records: list[dict[str, Any]], dataset: str) -> Errors:
    """Errors of graphs, counts, predicted parameters and logits, over networks and GHNs."""
    num_classes, image_size = SIZES[dataset]
    errors: Errors = {}

    def note(quantity: str, error: float) -> None:
        errors.setdefault(quantity, []).append(error)

    images = golden_images(8 if dataset == "cifar10" else 2, image_size)
    for record in records:
        arch = Architecture.from_dict(record["args"])
        network = lower(arch, num_classes, image_size)
        note("graphs", float(not same_graph(network.graph, record["graph"])))
        # reachable parameters in one file, all of them in the other
        note(
            "parameter counts", float(record["num_params"] not in (network.capacity, network.num_parameters))
        )
        for ghn, expected in record["predict"].items():
            config = preset(ghn.split("_")[0], num_classes, image_size)
            templates = deepnets_templates(config, image_size)
            flat = predict_flat(config, golden_params(config), network, templates)
            tensors = unflatten(network.parameters, np.asarray(flat))
            note("predicted parameters", tensors_error(tensors, expected["params"]))
            note(
                "logits, executor",
                logits_error(run.logits(network.program, flat, images), expected["logits"]),
            )
            plain = CellNetwork(arch, num_classes, image_size).apply({"params": to_params(tensors)}, images)
            note("logits, plain module", logits_error(cast(jax.Array, plain), expected["logits"]))
    return errors


def golden_images(count: int, size: int) -> jax.Array:
    """The images of the golden logits, NHWC."""
    images = np.random.RandomState(0).standard_normal((count, 3, size, size))
    return jnp.asarray(images.astype(np.float32).transpose(0, 2, 3, 1))


def tensors_error(tensors: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> float:
    """Worst relative error of tensors against digests; infinite if their names or shapes differ."""
    if set(tensors) != set(expected):
        return float("inf")
    return max(digest_error(tensors[name], digest) for name, digest in expected.items())


def digest_error(tensor: np.ndarray, digest: Mapping[str, Any]) -> float:
    """Relative error of a tensor's norm, and of its samples relative to the largest."""
    if list(tensor.shape) != list(digest["shape"]):
        return float("inf")
    values = np.asarray(tensor, np.float64).ravel()
    places = np.unique(np.linspace(0, values.size - 1, min(32, values.size)).astype(np.int64))
    sample = np.array(digest["sample"])
    norm_error = abs(np.linalg.norm(values) - digest["l2"]) / max(digest["l2"], 1e-12)
    return float(max(norm_error, np.abs(values[places] - sample).max() / max(np.abs(sample).max(), 1e-12)))


def logits_error(logits: jax.Array, expected: Any) -> float:
    """Largest error relative to the largest logit, given all logits or a digest."""
    if isinstance(expected, dict):
        return digest_error(np.asarray(logits), expected)
    return float(np.abs(np.asarray(logits) - np.array(expected)).max() / np.abs(expected).max())


def same_graph(graph: Graph, expected: Mapping[str, Any]) -> bool:
    """Whether nodes, shapes, real and virtual edges agree, up to the order of nodes.

    Nodes are told apart by what they are and, as parameters have unique names, by refining that with the
    neighbours at every distance: two graphs agree if their refined labels do.
    """
    nodes = expected["nodes"]
    hops = np.zeros((len(nodes), len(nodes)), np.int64)
    for sender, receiver in expected["edges"]:
        hops[sender, receiver] = 1
    for sender, receiver, length in expected["virtual"]:
        hops[sender, receiver] = length
    ours = [
        (PRIMITIVES[primitive], name, shape)
        for primitive, name, shape in zip(graph.primitives, graph.names, graph.shapes, strict=True)
    ]
    theirs = [
        (
            primitive,
            name if name and name.endswith(("weight", "bias")) else None,
            tuple(shape) if shape else None,
        )
        for primitive, _, name, shape in nodes
    ]
    return refined_labels(ours, path_lengths(graph)) == refined_labels(theirs, hops)


def refined_labels(nodes: list[tuple], hops: np.ndarray, rounds: int = 4) -> list[int]:
    """Labels of the nodes, refined by the nodes on paths to and from them (Weisfeiler-Leman), sorted."""
    labels = [hash(node) for node in nodes]

    def around(lengths: np.ndarray) -> tuple:
        return tuple(sorted((int(lengths[j]), labels[j]) for j in np.flatnonzero(lengths)))

    for _ in range(rounds):
        labels = [hash((labels[i], around(hops[i]), around(hops[:, i]))) for i in range(len(nodes))]
    return sorted(labels)


# -- named models ----------------------------------------


def target_errors(records: list[dict[str, Any]]) -> Errors:
    """Errors of graphs, counts and predicted parameters of named models, traced as users' models are."""
    errors: Errors = {"graphs": [], "parameter counts": [], "predicted parameters": []}
    for record in records:
        if record["arch"] not in NAMES or record["arch"] in WITHOUT_POOL:
            known = "the public graph lacks its global pool" if record["arch"] in NAMES else "no named model"
            print(f"  {record['arch']}: {known}, skipped")
            continue
        for dataset in SIZES.keys() & record.keys():
            expected = record[dataset]
            num_classes, image_size = SIZES[dataset]
            config = preset("ghn2", num_classes, image_size)
            ghn = TrainedGHN(config, golden_params(config), {})
            model = target(record["arch"], num_classes, image_size)
            with warnings.catch_warnings():  # ConvNeXt's layer scale is not predicted, there as here
                warnings.simplefilter("ignore")
                images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
                variables, report = predict_parameters(model, images, ghn)
            kept = set(expected["params"])
            tensors = {n: t for n, t in from_params(variables["params"]).items() if n in kept}
            count = sum(np.size(leaf) for leaf in jax.tree.leaves(variables["params"]))
            errors["graphs"].append(float(not same_graph(_public_names(report.graph), expected["graph"])))
            errors["parameter counts"].append(float(count != expected["num_params"]))
            errors["predicted parameters"].append(tensors_error(tensors, expected["params"]))
    return {quantity: values for quantity, values in errors.items() if values}


def _public_names(graph: Graph) -> Graph:
    """A graph whose nodes bear the public names of their parameters."""
    names = [
        name and f"{name.rpartition('.')[0]}.{'bias' if name.endswith('bias') else 'weight'}"
        for name in graph.names
    ]
    return graph._replace(names=tuple(names))


# -- training steps ----------------------------------------


def training_errors(records: list[dict[str, Any]], nets: list[list[Any]]) -> Errors:
    """Errors of the losses of the first two steps, and of the gradient norms of the first, twice.

    Float32 rounds predicted parameters by 2e-7; the ReLUs which that switches move a network's gradient by up to 1e-2.
    In float64 only the figures are rounded.
    """
    errors: Errors = {}
    for record in records:
        config = preset(record["config"].split("_")[0])
        for number, (loss, norms, step) in enumerate(
            training_steps(config, record["steps"][:2], nets), start=1
        ):
            errors.setdefault(f"loss, step {number}", []).append(abs(loss - step["loss"]) / step["loss"])
            if number == 1:
                errors.setdefault("gradient norms, step 1", []).append(_norms_error(norms, step))
        with jax.enable_x64(True):
            _, norms, step = next(training_steps(config, record["steps"][:1], nets, np.float64))
        errors.setdefault("gradient norms, in float64", []).append(_norms_error(norms, step))
    return errors


def _norms_error(norms: Mapping[str, float], step: Mapping[str, Any]) -> float:
    expected = step["grad_norm_after_clip"]
    scale = max(expected.values())
    # a norm far below the largest is all rounding: measure it against the largest
    return max(abs(norms[n] - expected[n]) / max(expected[n], 1e-3 * scale) for n in expected)


def training_steps(
    config: GHNConfig, steps: list[dict[str, Any]], nets: list[list[Any]], dtype: Any = np.float32
) -> Iterator[tuple[float, dict[str, float], dict[str, Any]]]:
    """Takes golden training steps; yields the loss and the norm of each clipped gradient, by public name."""
    templates = deepnets_templates(config, 32)
    optimizer = meta.make_optimizer(1e-3, weight_decay=1e-5, clip=5.0)
    params = jax.tree.map(lambda weight: jnp.asarray(weight, dtype), golden_params(config))
    zero = jnp.zeros((), jnp.int32)
    devices = jax.local_devices()[:1]
    state = replicate(meta.TrainState(params, optimizer.init(params), zero, zero), devices)
    ghn = meta.make_ghn_step(config, templates, optimizer, devices)
    for step in steps:
        networks = tuple(lower(Architecture.from_dict(nets[i][1])) for i in step["nets"])
        rng = np.random.RandomState(step["images_seed"])
        images = rng.standard_normal((step["batch"], 3, 32, 32)).astype(np.float32).transpose(0, 2, 3, 1)
        images = jnp.asarray(images, dtype)
        labels = jnp.asarray(rng.randint(0, config.num_classes, step["batch"]))
        batch = prepare.prepare(networks, config, templates, num_devices=1)
        before = state
        state, metrics = meta.meta_step(ghn, state, batch, [images], [labels], dropout_key=None)
        yield float(metrics.loss[0]), _clipped_norms(config, before, state), step


def _clipped_norms(config: GHNConfig, before: meta.TrainState, after: meta.TrainState) -> dict[str, float]:
    """Norms of the clipped gradient, read off Adam's first moment: m' = 0.9 m + 0.1 (gradient + decay * weight)."""

    def moments(state: meta.TrainState) -> Any:
        return cast(Any, state.opt_state)[2][0].mu  # chain: clip, weight decay, Adam

    gradient = jax.tree.map(
        lambda new, old, weight: np.asarray((new - 0.9 * old) / 0.1 - 1e-5 * weight)[0],
        moments(after),
        moments(before),
        before.params,
    )
    return {n: float(np.linalg.norm(t)) for n, t in public_names.to_state_dict(config, gradient).items()}


if __name__ == "__main__":
    tyro.cli(main)
