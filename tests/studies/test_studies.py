"""Baselines, property prediction and search, end to end on a few architectures and steps."""

import dataclasses
import json
import pathlib
import time

import jax
import numpy as np
import pytest

from ghn_jax import pretrained
from ghn_jax.deepnets import sampling
from ghn_jax.deepnets.lowering import lower
from ghn_jax.evaluation.accuracy import accuracy
from ghn_jax.executor import lanes, layouts
from ghn_jax.finetuning.recipe import Recipe
from ghn_jax.images.loading import load
from ghn_jax.studies import baselines, properties, search, trained
from ghn_jax.studies.embeddings import graph_embeddings

INDEX = 27
"""A small architecture of the split test."""


def options(tmp: pathlib.Path, **changes) -> baselines.BaselineOptions:
    settings = {"num_archs": 2, "channels": 16, "steps": 2, "batch_size": 16, "results": tmp / "sgd.jsonl"}
    return baselines.BaselineOptions(**(settings | changes))


def record(arch: int, top1: float) -> dict:
    return {
        "arch": str(arch),
        "parameters": 1000 + arch,
        "ghn_top1": top1 - 5,
        "top1": {"1": top1 / 2, "5": top1},
        "noisy_top1": top1 - 1,
        "inference_seconds": 0.01 + arch / 1000,
        "convergence": 0.5,
        "seconds": 1.0,
    }


def test_baselines_train_what_is_not_there_yet(tmp_path: pathlib.Path, monkeypatch, capsys):
    calls = []

    def train(network, dataset, recipe, noise):
        calls.append(network.num_parameters)
        return trained.Trained({1: 20.0, 5: 30.0}, 25.0, 0.01, 0.5, 1.0)

    monkeypatch.setattr(baselines, "train_network", train)
    monkeypatch.setattr(baselines, "predicted_top1", lambda *_: 15.0)
    baselines.baselines(options(tmp_path, num_archs=1))
    baselines.baselines(options(tmp_path, num_archs=3))
    assert len(calls) == 3
    assert "SGD, 5 epochs  30.0 ± 0.0 (30.0)" in capsys.readouterr().out
    monkeypatch.setattr(baselines, "predicted_top1", lambda *_: None)  # one that overflows stops nothing
    baselines.baselines(options(tmp_path, num_archs=4))
    said = capsys.readouterr().out
    assert "since their logits are not finite: 3\n" in said and "GHN  15.0 ± 0.0 (15.0)" in said
    assert "GHN not finite" in said
    calls.pop()
    with pytest.raises(ValueError, match="other learning_rate"):
        baselines.baselines(options(tmp_path, learning_rate=1.0))
    with pytest.raises(ValueError, match="other image_size"):
        baselines.baselines(options(tmp_path, image_size=64))


def test_the_architecture_that_diverges_is_named(tmp_path: pathlib.Path, monkeypatch):
    def train(network, dataset, recipe, noise):
        raise ValueError("`loss` (=nan) is not finite at step 3: lower `learning_rate` (=0.025)")

    monkeypatch.setattr(baselines, "train_network", train)
    with pytest.raises(ValueError, match=r"architecture 0 of test: `loss` \(=nan\) .* lower `learning_rate`"):
        baselines.baselines(options(tmp_path, num_archs=1))


@pytest.mark.skipif(lanes._ON_CPU < 2, reason="one core trains one at a time")
def test_a_baseline_is_kept_while_one_before_it_still_trains(tmp_path: pathlib.Path, monkeypatch):
    first = lower(dataclasses.replace(sampling.sample("test", 0, image_size=16), C=16), 10, 16)

    def train(network, dataset, recipe, noise):
        for _ in range(600 if network.num_parameters == first.num_parameters else 0):
            if len((tmp_path / "sgd.jsonl").read_text().splitlines()) == 3:
                break
            time.sleep(0.1)
        else:
            assert network.num_parameters != first.num_parameters, "the others are not kept"
        return trained.Trained({1: 20.0}, 25.0, 0.01, 0.5, 1.0)

    monkeypatch.setattr(baselines, "train_network", train)
    monkeypatch.setattr(baselines, "predicted_top1", lambda *_: 15.0)
    baselines.baselines(options(tmp_path, num_archs=3))


def test_a_network_learns_on_the_executor():
    digits = load("digits")
    arch = sampling.sample("test", INDEX)
    network = lower(arch)
    recipe = Recipe(steps=14, batch_size=32, learning_rate=0.1)
    result = trained.train_network(network, digits, recipe)  # pyright: ignore[reportArgumentType]
    assert result.top1[1] > 15  # chance is 10
    assert 0 < result.convergence <= 1 and result.inference_seconds > 0


def test_parameters_are_drawn_as_in_pytorch():
    network = lower(sampling.sample("test", INDEX))
    flat = trained.draw_parameters(network, jax.random.key(0))
    tensors = layouts.unflatten(network.parameters, flat)
    for name, tensor in tensors.items():
        if tensor.ndim == 4 and not name.startswith("pos_enc"):
            bound = 1 / np.sqrt(np.prod(tensor.shape[1:]))
            assert 0.8 * bound < np.abs(tensor).max() <= bound * (1 + 1e-6), name
    norms = [t for n, t in tensors.items() if t.ndim == 1 and n.endswith("weight")]
    assert norms and all((t == 1).all() for t in norms)


def test_convergence_is_when_most_is_learned():
    assert trained.convergence([0.0] * 50 + [1.0] * 50) == pytest.approx(0.59)
    assert trained.convergence([1.0] * 5) == 1.0


def test_properties_are_predicted_from_embeddings(tmp_path: pathlib.Path, monkeypatch, capsys):
    monkeypatch.setattr(properties, "GRID", {"C": [100]})
    header = {"test_noise": 0.08, "split": "test", "seed": 0, "channels": 16, "image_size": 32}
    sizes = [lower(sampling.sample("test", index)).graph.num_nodes for index in range(40)]
    lines = [header, *(record(index, float(size)) for index, size in enumerate(sizes))]
    path = tmp_path / "sgd.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    taus = properties.properties(properties.PropertyOptions(path, folds=3))
    assert set(taus) == set(properties.PROPERTIES)
    assert taus["accuracy"]["SVR"].value > 0.2  # a graph's size can be read from its embedding
    assert taus["accuracy"]["accuracy by the GHN"].value == pytest.approx(1)
    assert taus["inference time"]["number of parameters"].value == pytest.approx(1)
    assert "40 architectures, in 3 folds" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"`folds` \(=21\)"):
        properties.properties(properties.PropertyOptions(path, folds=21))


def test_public_results_are_read(tmp_path: pathlib.Path, monkeypatch):
    monkeypatch.setattr(
        properties,
        "open_split",
        lambda path, split, size: [sampling.sample(split, index) for index in (0, 1)],
    )
    row = {"val_acc": [50.0, 90.0], "val_acc_noise": 40.0, "time": 8.0, "converge_time": 0.5}
    row |= {"params": 1000, "ghn2_test_acc": 55.0}
    path = tmp_path / "results_cifar10.json"
    path.write_text(json.dumps({"val": {"0": row, "1": row}, "test": {"1": row}}))
    teach, test = properties.read_truth(properties.PropertyOptions(path, nets=tmp_path))
    assert teach is not None and teach.values["accuracy"].tolist() == [90, 90]
    assert test.values["convergence time"].tolist() == [50]
    assert test.graphs[0].num_nodes == lower(sampling.sample("test", 1)).graph.num_nodes
    with pytest.raises(ValueError, match="`nets`"):
        properties.read_truth(properties.PropertyOptions(path))
    path.write_text(json.dumps({"val": {"0": {}}, "test": {"1": row}}))
    with pytest.raises(ValueError, match="lacks 'params' in the split 'val'"):
        properties.read_truth(properties.PropertyOptions(path, nets=tmp_path))


def test_search_trains_the_best_and_as_many_random_ones(tmp_path: pathlib.Path, monkeypatch, capsys):
    ranked, asked = [], []

    def predicted(ghn, network, dataset, split, batches):
        ranked.append(split)
        return float(network.num_parameters % 97)

    def train(options, recipe, split, indices, path, say):
        asked.append(indices)
        return {str(index): record(index, float(index)) for index in indices}

    monkeypatch.setattr(search, "predicted_top1", predicted)
    monkeypatch.setattr(search, "train_architectures", train)
    settings = search.SearchOptions(num_archs=8, top=2, channels=16, results=tmp_path / "search.jsonl")
    for _ in range(2):
        search.search(settings)
    assert ranked == ["val"] * 8  # once, on images that are not for testing
    assert asked[0] == asked[1] and len(set(asked[0])) == 4
    assert "Kendall's tau" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"`top` \(=5\)"):
        search.search(search.SearchOptions(num_archs=8, top=5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_archs": 501}, "`num_archs`"),
        ({"split": "tset"}, "did you mean 'test'"),
        ({"channels": 10}, "`channels`"),
        ({"image_size": 20}, "`image_size`"),
        ({"noise": -1.0}, "`noise`"),
        ({"batch_size": 0}, "`batch_size`"),
    ],
)
def test_bad_options_are_named(changes: dict, message: str, tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match=message):
        baselines.baselines(options(tmp_path, **changes))


def test_noise_makes_images_harder_to_read_and_stays_in_range():
    digits = load("digits")
    seen = []

    def logits(images):
        seen.append(np.asarray(images))
        return jax.nn.one_hot(np.zeros(len(images), int), 10)

    for noise in (0.0, 0.0, 0.3, 0.3):
        accuracy(logits, digits, "test", num_images=64, noise=noise)
    assert (seen[2] == seen[3]).all() and (seen[0] == seen[1]).all()
    pixels = seen[2] * np.array(digits.std, np.float32) + np.array(digits.mean, np.float32)
    assert pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6
    clean = seen[0] * np.array(digits.std, np.float32) + np.array(digits.mean, np.float32)
    middle = (clean > 0.4) & (clean < 0.6)
    assert (pixels - clean)[middle].std() == pytest.approx(0.3, rel=0.1)
    with pytest.raises(ValueError, match="`noise`"):
        accuracy(logits, digits, "test", noise=-0.1)


def test_embeddings_have_one_row_for_each_graph():
    ghn = pretrained.load("ghn2-digits")
    graphs = [lower(sampling.sample("test", index)).graph for index in (27, 23)]
    rows = graph_embeddings(ghn, graphs)
    assert rows.shape == (2, ghn.config.hidden)
    assert not np.allclose(rows[0], rows[1])
