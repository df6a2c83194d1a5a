"""Graphs and parameters of models of any kind, through their jaxprs."""

import warnings
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import ghn_jax
from benchmarks.graph_agreement import labels
from ghn_jax.deepnets import networks, sampling
from ghn_jax.deepnets.lowering import lower
from ghn_jax.evaluation.options import EvaluateOptions
from ghn_jax.evaluation.report import evaluate
from ghn_jax.graphs import PRIMITIVES, Graph, draw
from ghn_jax.models.config import preset
from ghn_jax.models.ghn import init_params
from ghn_jax.pretrained import TrainedGHN
from ghn_jax.runtime import compilation
from ghn_jax.tracing.models import trace

IMAGES = jnp.zeros((2, 32, 32, 3))


@pytest.fixture(scope="module")
def ghn() -> TrainedGHN:
    config = preset("ghn2")
    return TrainedGHN(config, init_params(config, jax.random.key(0)), {})


class Net(nn.Module):
    """Convolution, batch norm, residual, squeeze-excitation, head."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(
            nn.BatchNorm(use_running_average=not train, name="bn")(nn.Conv(24, (3, 3), name="stem")(x))
        )
        y = nn.Conv(24, (3, 3), feature_group_count=24, use_bias=False, name="depthwise")(x)
        gate = nn.sigmoid(nn.Dense(24, name="fc2")(nn.relu(nn.Dense(6, name="fc1")(y.mean((1, 2))))))
        x = nn.LayerNorm(name="ln")(x + y * gate[:, None, None])
        return nn.Dense(self.num_classes, name="head")(nn.max_pool(x, (2, 2), (2, 2)).mean((1, 2)))


class NNXNet(nnx.Module):
    """Convolution, batch norm, head."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(3, 24, (3, 3), rngs=rngs)
        self.bn = nnx.BatchNorm(24, rngs=rngs)
        self.head = nnx.Linear(24, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.bn(self.conv(x))).mean((1, 2)))


def primitives(graph: Graph) -> list[str]:
    return [PRIMITIVES[i] for i in graph.primitives]


def edges(graph: Graph) -> set[tuple[str, str]]:
    labels = [name or primitive for name, primitive in zip(graph.names, primitives(graph), strict=True)]
    return {(labels[s], labels[r]) for s, r in zip(graph.senders, graph.receivers, strict=True)}


def test_graph_of_linen_model():
    assert edges(ghn_jax.graph_of(Net(), IMAGES)) == {
        ("input", "stem.kernel"),
        ("stem.kernel", "stem.bias"),
        ("stem.bias", "bn.scale"),
        ("bn.scale", "depthwise.kernel"),
        ("depthwise.kernel", "fc1.kernel"),
        ("fc1.kernel", "fc1.bias"),
        ("fc1.bias", "fc2.kernel"),
        ("fc2.kernel", "fc2.bias"),
        ("fc2.bias", "cse"),
        ("depthwise.kernel", "cse"),
        ("bn.scale", "sum"),
        ("cse", "sum"),
        ("sum", "ln.scale"),
        ("ln.scale", "max_pool"),
        ("max_pool", "glob_avg"),
        ("glob_avg", "head.kernel"),
        ("head.kernel", "head.bias"),
    }


def test_predicts_linen_model(ghn):
    variables, report = ghn_jax.predict_parameters(Net(), IMAGES, ghn)
    assert report.unassigned == {}
    expected = jax.eval_shape(Net().init, jax.random.key(0), IMAGES)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, expected)
    assert report.parameters == sum(x.size for x in jax.tree.leaves(expected["params"]))
    assert report.node_embeddings.shape == (report.graph.num_nodes, ghn.config.hidden)
    np.testing.assert_array_equal(variables["batch_stats"]["bn"]["var"], np.ones(24))
    logits: Any = Net().apply(variables, IMAGES)
    assert jnp.isfinite(logits).all()


def test_predicts_nnx_model(ghn):
    model = NNXNet(nnx.Rngs(0))
    before = np.array(model.conv.kernel[...])
    filled, report = ghn_jax.predict_parameters(model, IMAGES, ghn)
    assert report.unassigned == {}
    assert primitives(report.graph) == ["input", "conv", "bias", "bn", "glob_avg", "conv", "bias"]
    np.testing.assert_array_equal(model.conv.kernel[...], before)
    assert np.abs(filled.conv.kernel[...] - before).max() > 0
    assert filled(IMAGES).shape == (2, 10)


def small(params: Any, x: jax.Array) -> jax.Array:
    """A plain function: OIHW kernel, transposed head, heads as separate axes."""
    x = jax.lax.conv_general_dilated(
        x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "OIHW", "NHWC")
    )
    x = jnp.einsum("bhwc,cnd->bhwnd", jax.nn.relu(x), params["mix"]) + params["mix_bias"]
    return x.mean((1, 2)).reshape(len(x), -1) @ params["head"].T


def linen(params: Any, x: jax.Array) -> jax.Array:
    """The same function, with parameters laid out as Flax does."""
    x = jax.lax.conv_general_dilated(
        x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return (jax.nn.relu(x) @ params["mix"] + params["mix_bias"]).mean((1, 2)) @ params["head"]


def test_layout_of_parameters_makes_no_difference(ghn):
    def shapes(**kwargs):
        return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in kwargs.items()}

    one = shapes(conv=(72, 3, 5, 5), mix=(72, 4, 6), mix_bias=(4, 6), head=(10, 24))
    other = shapes(conv=(5, 5, 3, 72), mix=(72, 24), mix_bias=(24,), head=(24, 10))
    a, _ = ghn_jax.predict_parameters(ghn_jax.Function(small, one), IMAGES, ghn)
    b, _ = ghn_jax.predict_parameters(ghn_jax.Function(linen, other), IMAGES, ghn)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    np.testing.assert_allclose(small(a, x), linen(b, x), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(a["conv"][64:], a["conv"][:8])  # wider than 64: repeated


class Layer(nn.Module):
    """A residual layer."""

    @nn.compact
    def __call__(self, x, _):
        return x + nn.relu(nn.Conv(16, (3, 3), use_bias=False, name="conv")(x)), None


class Stacked(nn.Module):
    """Layers in a scan, their parameters stacked."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(16, (3, 3), name="stem")(x)
        layers = nn.scan(
            nn.remat(Layer),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
            metadata_params={},
        )
        x, _ = layers(name="layers")(x, None)
        return nn.Dense(10, name="head")(x.mean((1, 2)))


def test_layers_in_a_scan_are_nodes_of_their_own(ghn):
    variables, report = ghn_jax.predict_parameters(Stacked(), IMAGES, ghn)
    assert report.unassigned == {}
    assert [n for n in report.graph.names if n and n.startswith("layers")] == [
        f"layers.conv.kernel[{i}]" for i in range(3)
    ]
    kernel = variables["params"]["layers"]["conv"]["kernel"]
    assert kernel.shape == (3, 3, 3, 16, 16)
    assert np.abs(kernel[0] - kernel[1]).max() > 0


class Attention(nn.Module):
    """A class token, a positional encoding on a grid, attention and a scale of the residual."""

    token: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(16, (8, 8), (8, 8), name="patches")(x).reshape(len(x), 16, 16)
        x = x + self.param("position", nn.initializers.normal(0.02), (1, 16, 16))
        if self.token:
            token = self.param("token", nn.initializers.normal(0.02), (1, 1, 16))
            x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, 16)), x], axis=1)
        scale = self.param("scale", nn.initializers.constant(0.1), (16,))
        y = nn.MultiHeadDotProductAttention(2, name="attention")(nn.LayerNorm(name="ln")(x))
        return nn.Dense(10, name="head")((x + scale * y).mean(1))


def test_what_cannot_be_predicted_keeps_its_own_value(ghn):
    with pytest.warns(UserWarning, match=r"2 parameters keep their own.*'?scale is an elementwise.*token"):
        variables, report = ghn_jax.predict_parameters(Attention(token=True), IMAGES, ghn, seed=3)
    assert set(report.unassigned) == {"scale", "token"}
    own: Any = Attention(token=True).init({"params": jax.random.key(3), "dropout": jax.random.key(3)}, IMAGES)
    for name in report.unassigned:
        np.testing.assert_allclose(variables["params"][name], own["params"][name], rtol=1e-6)
    graph = report.graph
    assert primitives(graph).count("msa") == 1
    assert graph.shapes[graph.names.index("position")] == (1, 16, 4, 4)
    with pytest.raises(ghn_jax.UnsupportedModel, match=r"`strict` \(=True\)"):
        ghn_jax.predict_parameters(Attention(token=True), IMAGES, ghn, strict=True)


def test_class_layer_can_be_left_out(ghn):
    with pytest.warns(UserWarning, match="classification layer"):
        _, report = ghn_jax.predict_parameters(Net(num_classes=7), IMAGES, ghn, predict_class_layers=False)
    assert set(report.unassigned) == {"head.kernel", "head.bias"}


@pytest.mark.parametrize("split", sorted(set(sampling.SPLITS) - {"train"}))
def test_jaxpr_and_symbolic_walk_agree(split):
    for index in range(2):
        arch = sampling.sample(split, index)
        plain = networks.CellNetwork(arch, 10, 32)
        assert labels(ghn_jax.graph_of(plain, IMAGES)) == labels(lower(arch).graph), (split, index)


def test_second_model_compiles_nothing(ghn):
    ghn_jax.predict_parameters(ghn_jax.target("resnet18", 10, 32), IMAGES, ghn)
    counter = compilation.CompilationCounter()
    counter.register()
    ghn_jax.predict_parameters(ghn_jax.target("resnet34", 10, 32), IMAGES, ghn)
    ghn_jax.predict_parameters(ghn_jax.target("mobilenet_v2", 10, 32), IMAGES, ghn)
    assert counter.count + counter.cached == 0


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_running_statistics_are_those_of_the_images(ghn, kind):
    model = Net() if kind == "linen" else NNXNet(nnx.Rngs(0))
    variables, _ = ghn_jax.predict_parameters(model, IMAGES, ghn)
    images = jax.random.normal(jax.random.key(1), (16, 32, 32, 3)) + 1.0
    by_batch = ghn_jax.apply_by_batch(model, variables, images)
    filled = ghn_jax.fill_running_statistics(model, variables, images)
    evaluated: Any = filled(images) if kind == "nnx" else Net().apply(filled, images)
    np.testing.assert_allclose(evaluated, by_batch, rtol=1e-3, atol=1e-4)
    if kind == "linen":
        trained: Any = Net().apply(variables, images, train=True, mutable=["batch_stats"])
        np.testing.assert_allclose(by_batch, trained[0], rtol=1e-3, atol=1e-4)


def looping(params, x):
    x = x.reshape(len(x), -1)
    return jax.lax.while_loop(lambda c: c[0].sum() < 0, lambda c: (c[0] @ params["w"],), (x[:, :10],))[0]


def slicing(params, x):
    x = x.reshape(len(x), -1)[:, :8]
    return (x @ params["w"][:8]) @ params["w"][8:, :10]


ABSTRACT = {"w": jax.ShapeDtypeStruct((18, 10), jnp.float32)}
SQUARE = {"w": jax.ShapeDtypeStruct((10, 10), jnp.float32)}


@pytest.mark.parametrize(
    ("model", "images", "message"),
    [
        ("resnet50", IMAGES, r"`model` \(a str\) is no Flax module"),
        (Net(), jnp.zeros((32,)), "`sample_input` of shape"),
        (Net(), jnp.zeros((32, 32, 3)), "images of shape|a classifier returns"),
        (
            Net(num_classes=1000),
            IMAGES,
            r"predicts 10 classes and the model's last layer \(head.kernel\) has 1000",
        ),
        (nn.Sequential([lambda x: x.mean((1, 2))]), IMAGES, "has no parameters"),
        (
            nn.Sequential(
                [lambda x: x[:, 32:].reshape(2, -1), nn.Dense(10, kernel_init=nn.initializers.zeros)]
            ),
            IMAGES,
            r"a parameter without elements, layers_1.kernel \(0, 10\), on images of shape .*give it larger images",
        ),
        (nn.Dense(10), IMAGES, r"a classifier returns \(batch, label\)"),
        (ghn_jax.Function(looping, SQUARE), IMAGES, "'w' is used in a while loop"),
        (ghn_jax.Function(lambda p, x: x[:, 0, 0] * float(p["w"][0, 0]), SQUARE), IMAGES, "cannot be traced"),
        (ghn_jax.Function(lambda p, x: p["w"][:2], SQUARE), IMAGES, "does not depend on its input"),
    ],
)
def test_errors(ghn, model, images, message):
    with pytest.raises(ValueError, match=message):
        ghn_jax.predict_parameters(model, images, ghn)


def test_predicts_inside_jit(ghn):
    outside = ghn_jax.predict_parameters(Net(), IMAGES, ghn).variables

    @jax.jit
    def inside(images):
        return ghn_jax.predict_parameters(Net(), images, ghn).variables, ghn_jax.graph_of(
            Net(), images
        ).num_nodes

    jax.tree.map(np.testing.assert_array_equal, inside(IMAGES)[0], outside)


def test_what_jax_traces_is_no_start(ghn):
    def of_weights(params):
        return ghn_jax.predict_parameters(Net(), IMAGES, ghn._replace(params=params)).variables

    def of_model(params):
        model = ghn_jax.Function(lambda p, x: (x.mean((1, 2)) @ p["w"]) ** p["kept"], params)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ghn_jax.predict_parameters(model, IMAGES, ghn).variables

    with pytest.raises(ValueError, match=r"`ghn` holds arrays that jax traces.*outside jax.jit"):
        jax.jit(of_weights)(ghn.params)
    with pytest.raises(ValueError, match="`model` holds arrays that jax traces"):
        jax.jit(of_model)({"w": jnp.ones((3, 10)), "kept": jnp.ones(10)})


def test_draws(tmp_path):
    graph = ghn_jax.graph_of(Net(), IMAGES)
    draw(graph, tmp_path / "net.svg")
    text = (tmp_path / "net.svg").read_text()
    assert text.count("<title>") == graph.num_nodes
    assert "head.kernel (10, 24)" in text
    with pytest.raises(ValueError, match=r"must end in \.svg"):
        draw(graph, tmp_path / "net.png")


def test_traces_without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trace(Net(), IMAGES).names[0] == "bn.bias"


def test_evaluates_exports_and_draws_an_imported_model(tmp_path, capsys):
    options = EvaluateOptions(
        arch=f"{__name__}:Net",
        export=tmp_path / "net.safetensors",
        draw=tmp_path / "net.svg",
        results=tmp_path / "results.jsonl",
        compilation_cache=tmp_path / "cache",
    )
    evaluate(options)
    assert "top-1" in capsys.readouterr().out
    assert safetensors.numpy.load_file(tmp_path / "net.safetensors")["head.kernel"].shape == (24, 10)
    assert (tmp_path / "net.svg").exists()
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2
    (tmp_path / "ends.py").write_text("import sys\nsys.exit(0)\n")
    for arch in ("nosuch:f", f"{tmp_path}/ends.py:f"):
        with pytest.raises(ValueError, match=r"`arch` \(='.*:f'\) cannot be imported"):
            evaluate(EvaluateOptions(arch=arch))
    with pytest.raises(ValueError, match="`num_archs`"):
        evaluate(EvaluateOptions(arch="resnet50", num_archs=2))
