"""Against the public PyTorch code, through its figures."""

import pathlib

import pytest

from benchmarks import parity
from ghn_jax.deepnets.architectures import Architecture
from ghn_jax.deepnets.lowering import lower
from ghn_jax.models.config import preset
from ghn_jax.pretrained import public_names


@pytest.mark.parametrize("place", range(5))
def test_network(golden: pathlib.Path, place: int):
    records = parity.load(golden / "deepnets_cifar10.json.gz")[place : place + 1]
    errors = parity.network_errors(records, "cifar10")
    assert {
        "graphs",
        "parameter counts",
        "predicted parameters",
        "logits, executor",
        "logits, plain module",
    } == set(errors)
    for quantity, values in errors.items():
        assert max(values) <= parity.TOLERANCE[quantity], quantity


@pytest.mark.parametrize("place", range(2))
def test_named_model(golden: pathlib.Path, place: int):
    errors = parity.target_errors(parity.load(golden / "torchvision.json.gz")[place : place + 1])
    assert set(errors) == {"graphs", "parameter counts", "predicted parameters"}
    for quantity, values in errors.items():
        assert max(values) <= parity.TOLERANCE[quantity], quantity


@pytest.mark.parametrize("place", range(5))
def test_named_model_with_ghn3(golden: pathlib.Path, place: int):
    figures = parity.load(golden / "ghn3_small_torchvision.json.gz")
    errors = parity.ghn3_errors(figures | {"archs": figures["archs"][place : place + 1]})
    assert set(errors) == {"graphs", "parameter counts", "predicted parameters"}
    for quantity, values in errors.items():
        assert len(values) == 1
        assert max(values) <= parity.TOLERANCE[quantity], quantity


@pytest.fixture(scope="module")
def training_errors(golden: pathlib.Path) -> parity.Errors:
    records = parity.load(golden / "train_steps.json")[:1]
    return parity.training_errors(records, parity.load(golden / "train_steps_nets.json"))


@pytest.mark.parametrize("quantity", ["loss, step 1", "loss, step 2"])
def test_training_losses(training_errors: parity.Errors, quantity: str):
    assert max(training_errors[quantity]) <= parity.TOLERANCE[quantity]


@pytest.mark.xfail(
    reason="about 5e-3: ReLUs that the rounding of the predicted parameters switches; 6e-4 in float64",
    strict=False,
)
def test_training_gradients(training_errors: parity.Errors):
    quantity = "gradient norms, step 1"
    assert max(training_errors[quantity]) <= parity.TOLERANCE[quantity]


def test_training_gradients_in_float64(training_errors: parity.Errors):
    quantity = "gradient norms, in float64"
    assert max(training_errors[quantity]) <= parity.TOLERANCE[quantity]


def test_a_changed_graph_is_told_apart(golden: pathlib.Path):
    record = parity.load(golden / "deepnets_cifar10.json.gz")[0]
    network = lower(Architecture.from_dict(record["args"]))
    graph = record["graph"]
    assert parity.same_graph(network.graph, graph)
    assert not parity.same_graph(network.graph, graph | {"edges": graph["edges"][:-1]})
    sender, receiver, length = graph["virtual"][-1]
    assert not parity.same_graph(
        network.graph, graph | {"virtual": [*graph["virtual"][:-1], [sender, receiver, length + 1]]}
    )


@pytest.mark.parametrize(
    ("name", "num_classes", "image_size", "count"),
    [
        ("ghn2", 10, 32, 1_620_764),
        ("ghn1", 10, 32, 1_620_668),
        ("mlp", 10, 32, 1_614_396),
        ("ghn2", 1000, 224, 2_319_720),
        ("ghn3-t", 1000, 224, 6_906_632),
    ],
)
def test_number_of_weights(name: str, num_classes: int, image_size: int, count: int):
    config = preset(name, num_classes, image_size)
    params = parity.golden_params(config)
    state = public_names.to_state_dict(config, params)
    assert sum(t.size for t in state.values()) == count
    for key, tensor in state.items():
        assert (tensor == parity.fill(key, tensor.shape)).all()
