"""Compares what is predicted for named models, traced as users' models are, with golden figures."""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.golden import Errors, golden_params, same_graph, tensors_error
from ghn_jax.deepnets.networks import from_params
from ghn_jax.graphs import PRIMITIVES, Graph, batch
from ghn_jax.models import assembly, tensor_decoder
from ghn_jax.models.config import GHNConfig, ghn3, preset
from ghn_jax.models.ghn import GHN, encode
from ghn_jax.predict import predict_parameters
from ghn_jax.pretrained import TrainedGHN
from ghn_jax.targets import NAMES, target
from ghn_jax.tracing.builder import Extracted
from ghn_jax.tracing.models import trace

SIZES = {"cifar10": (10, 32), "imagenet": (1000, 224)}

WITHOUT_POOL = ("shufflenet_v2_x1_0", "mnasnet1_0")
"""Models whose global pool, a mean over two axes, the public graphs lack; here every global pool is a node."""

WITHOUT_ATTENTION = ("vit_b_16", "vit_b_32")
"""Models whose attention is one function of PyTorch, which the public graphs lose; here every attention is a node."""


def target_errors(records: list[dict[str, Any]]) -> Errors:
    """Errors of graphs, counts and predicted parameters with GHN-2."""
    errors: Errors = {}
    for record in records:
        for dataset in SIZES.keys() & record.keys():
            num_classes, image_size = SIZES[dataset]
            config = preset("ghn2", num_classes, image_size)
            _compare(record["arch"], record[dataset], config, image_size, errors)
    return errors


def ghn3_errors(golden: Mapping[str, Any], limit: int | None = None) -> Errors:
    """Errors of graphs, counts and predicted parameters with GHN-3, of the configuration in the file."""
    errors: Errors = {}
    for record in golden["archs"][:limit]:
        _compare(record["arch"], record, ghn3_config(golden["config"]), 224, errors)
    return errors


def ghn3_config(public: Mapping[str, Any]) -> GHNConfig:
    """The configuration that the public code calls so."""
    outputs, inputs, height, width = public["max_shape"]
    assert (
        outputs == inputs
        and height == width
        and public["weight_norm"]
        and public["ve"]
        and public["layernorm"]
    )
    config = ghn3(public["hid"], public["layers"], public["heads"])
    return dataclasses.replace(config, num_classes=public["num_classes"], max_kernel=height, channels=outputs)


def _compare(
    arch: str, expected: Mapping[str, Any], config: GHNConfig, image_size: int, errors: Errors
) -> None:
    """Adds the errors of one model."""
    if arch not in NAMES or arch in WITHOUT_POOL:
        known = "the public graph lacks its global pool" if arch in NAMES else "no named model"
        print(f"  {arch}: {known}, skipped")
        return
    model = target(arch, config.num_classes, image_size)
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    ghn = TrainedGHN(config, golden_params(config), {})
    with warnings.catch_warnings():  # ConvNeXt's layer scale is not predicted, there as here
        warnings.simplefilter("ignore")
        if arch in WITHOUT_ATTENTION:
            graph, params = _predict_without_attention(model, images, ghn)
        else:
            variables, report = predict_parameters(model, images, ghn)
            graph, params = report.graph, variables["params"]
    tensors = {n: t for n, t in from_params(params).items() if n in expected["params"]}
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    for quantity, error in {
        "graphs": float(not same_graph(_public_names(graph), expected["graph"])),
        "parameter counts": float(count != expected["num_params"]),
        "predicted parameters": tensors_error(tensors, expected["params"], _drawn(tensors)),
    }.items():
        errors.setdefault(quantity, []).append(error)


def _drawn(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """How many of the first entries of each tensor are drawn at random, there as here."""
    return {
        name: tensor.shape[-1] if name.endswith("pos_embedding") else tensor.size
        for name, tensor in tensors.items()
        if name.endswith(("pos_embedding", "relative_position_bias_table"))
    }


def _public_names(graph: Graph) -> Graph:
    """A graph whose nodes bear the public names of their parameters."""
    kinds = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    parts = [(name or "").rpartition(".") for name in graph.names]
    names = [f"{layer}.{kinds[kind]}" if kind in kinds else None for layer, _, kind in parts]
    return graph._replace(names=tuple(name and name.replace(".in_proj.", ".in_proj_") for name in names))


# -- what the public graphs lack ----------------------------------------


def _predict_without_attention(model: Any, images: Any, ghn: TrainedGHN) -> tuple[Graph, Any]:
    """`predict_parameters`, on a graph from which the attention nodes are taken."""
    traced = trace(model, images)
    extracted = _without(traced.extract(), "msa")
    graphs = batch([encode(extracted.graph, ghn.config)])
    embed = jax.jit(GHN(ghn.config).apply, static_argnames=("max_nodes", "method"))
    nodes = embed({"params": ghn.params}, graphs.graphs, max_nodes=graphs.max_nodes, method="embed")[0]
    decoded = tensor_decoder.decode(ghn.config, ghn.params["decoder"], nodes, extracted)
    own = traced.initial(sorted({leaf.index for leaf in extracted.unassigned}))
    tensors = assembly.assemble(ghn.config, decoded, extracted, traced.leaves, own)
    return extracted.graph, traced.rebuild(tensors)["params"]


def _without(extracted: Extracted, primitive: str) -> Extracted:
    """A graph without the nodes of a primitive; what came before them leads to what comes after."""
    graph, gone = extracted.graph, PRIMITIVES.index(primitive)
    edges = set(zip(graph.senders.tolist(), graph.receivers.tolist(), strict=True))
    kept = [node for node in range(graph.num_nodes) if graph.primitives[node] != gone]
    for node in set(range(graph.num_nodes)) - set(kept):
        before = {s for s, r in edges if r == node}
        after = {r for s, r in edges if s == node}
        edges = {edge for edge in edges if node not in edge} | {(s, r) for s in before for r in after}
    new = {old: place for place, old in enumerate(kept)}
    senders, receivers = np.array(sorted((new[s], new[r]) for s, r in edges), np.int32).T
    reduced = Graph(
        graph.primitives[kept],
        tuple(graph.names[node] for node in kept),
        tuple(graph.shapes[node] for node in kept),
        senders,
        receivers,
    )
    return extracted._replace(
        graph=reduced,
        owned=tuple(owned._replace(node=new[owned.node]) for owned in extracted.owned),
        class_nodes=tuple(new[node] for node in extracted.class_nodes),
    )
