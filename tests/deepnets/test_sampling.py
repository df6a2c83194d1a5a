"""Sampled architectures: reproducible, within the rules of their split, and like the published ones."""

import dataclasses

import numpy as np
import pytest

from ghn_jax.deepnets import sampling
from ghn_jax.deepnets.image_sizes import CIFAR_SIZE, IMAGE_SIZES
from ghn_jax.deepnets.lowering import capacity_of, lower
from ghn_jax.deepnets.sampling import (
    CHANNELS,
    FC_DIMS,
    MAX_NODES,
    SPLITS,
    draw_width,
    meta_batch,
    named,
    sample,
)


def test_an_architecture_depends_on_seed_split_and_index_alone():
    first = [sample("train", index) for index in range(10)]
    assert [sample("train", index) for index in reversed(range(10))] == first[::-1]
    assert len(set(first)) == 10
    others = [sample("train", 0, seed=1), sample("val", 0), sample("test", 0)]
    assert len({first[0], *others}) == 4
    assert first[0] != sample("train", SPLITS["train"].size - 1)


@pytest.mark.parametrize("split", SPLITS)
def test_architectures_keep_the_rules_of_their_split(split):
    rules = SPLITS[split]
    archs = [sample(split, index) for index in range(30)]
    fewest, most_deep, most = rules.steps
    for arch in archs:
        cells = (arch.genotype.normal, arch.genotype.reduce)
        steps = len(arch.genotype.normal) // 2
        assert rules.cells[0] <= arch.n_cells <= rules.cells[1]
        assert fewest <= steps <= (most if arch.n_cells <= max(rules.deep) else most_deep)
        assert len(arch.genotype.reduce) == 2 * steps
        assert arch.genotype.normal_concat == arch.genotype.reduce_concat
        assert steps + 1 in arch.genotype.normal_concat
        shallow = arch.n_cells <= rules.cells[0] + 1 and steps <= most_deep
        assert arch.norm or rules.norm is False or (rules.norm is None and shallow)
        assert not (arch.norm and rules.norm is False)
        for cell in cells:
            ops = [op for op, _ in cell]
            assert sum(op in ("conv_5x5", "conv_7x7") for op in ops) <= 1 and ops.count("cse") <= 1
            assert steps > 1 or "none" not in ops
            assert all(cell[i][1] != cell[i + 1][1] for i in range(0, len(cell), 2))
        assert arch.is_vit or any("conv" in op for op in arch.genotype.ops)
        assert arch.glob_avg or not (arch.is_vit or arch.n_cells > max(rules.deep))
        assert arch.preproc or (steps == 1 and arch.C_mult == 1)
        assert not (arch.stem_pool and arch.stem_type)
        assert arch.fc_dim in FC_DIMS
        assert arch.C in ([4 * c for c in CHANNELS] if split == "wide" else CHANNELS)
        narrow = dataclasses.replace(arch, C=32, fc_dim=256)
        assert all(capacity_of(narrow, 10, size) <= rules.max_parameters for size in IMAGE_SIZES)
    assert len({arch.n_cells for arch in archs}) > 5
    assert {arch.genotype.normal_concat for arch in archs} >= {(fewest + 1,)}
    assert all(arch.C == 32 for arch in archs) == (split == "train")


def test_wide_architectures_are_those_of_test_with_more_channels():
    for image_size, factor in ((32, 4), (224, 2)):
        for index in range(5):
            wide, test = (sample(split, index, image_size=image_size) for split in ("wide", "test"))
            assert wide == dataclasses.replace(test, C=factor * test.C)


def test_heavier_networks_are_drawn_narrower():
    arch = next(
        arch
        for arch in (sample("train", index) for index in range(1000))
        if arch.n_cells <= 8 and arch.glob_avg and not {"conv_5x5", "conv_7x7"} & set(arch.genotype.ops)
    )
    rng = np.random.default_rng(0)
    for capacity, channels in ((900_000, (32,)), (500_000, (32, 48)), (300_000, (32, 48, 64)), (1, CHANNELS)):
        drawn = [draw_width(rng, arch, capacity) for _ in range(200)]
        assert {a.C for a in drawn} == set(channels)
        assert {a.fc_dim for a in drawn} == set(FC_DIMS if capacity == 1 else FC_DIMS[:4])
        assert {dataclasses.replace(a, C=arch.C, fc_dim=arch.fc_dim) for a in drawn} == {arch}
    assert draw_width(rng, dataclasses.replace(arch, n_cells=13), 1).C == 32


def test_meta_batch_is_a_function_of_seed_and_step():
    batch = meta_batch(seed=0, step=5, size=3)
    again = meta_batch(seed=0, step=5, size=3)
    assert batch.indices == again.indices
    for a, b in zip(batch.networks, again.networks, strict=True):
        assert a.parameters == b.parameters and a.program == b.program
        assert a.graph.names == b.graph.names and (a.graph.senders == b.graph.senders).all()
    others = (meta_batch(0, 6, 3), meta_batch(1, 5, 3))
    assert all(other.indices != batch.indices for other in others)


def test_meta_batch_holds_train_architectures():
    batch = meta_batch(seed=2, step=0, size=4, num_classes=100)
    for index, network in zip(batch.indices, batch.networks, strict=True):
        graph = lower(sample("train", index, seed=2)).graph
        assert graph.names == network.graph.names
        assert (graph.receivers == network.graph.receivers).all()
        assert network.graph.shapes[-1] == (100,)


def test_meta_batch_has_a_limited_number_of_nodes(monkeypatch):
    def num_nodes(step, size):
        return sum(network.graph.num_nodes for network in meta_batch(0, step, size).networks)

    assert all(num_nodes(step, 8) <= MAX_NODES for step in range(5))
    assert any(num_nodes(step, 4) > 700 for step in range(5))
    monkeypatch.setattr(sampling, "MAX_NODES", 700)
    assert all(num_nodes(step, 4) <= 700 for step in range(5))


def test_meta_batch_that_cannot_fit_is_refused(monkeypatch):
    arch = sample("train", 0)
    network = lower(arch)
    monkeypatch.setattr(sampling, "_sample", lambda *arguments: (arch, 0))
    monkeypatch.setattr(sampling, "lower", lambda *arguments: network)
    monkeypatch.setattr(sampling, "MAX_NODES", 3)
    with pytest.raises(ValueError, match=r"`meta_batch_size` \(=4\) is too large: .*; lower it"):
        meta_batch(0, 0, 4)


def test_meta_batch_of_stored_architectures():
    stored = [sampling.sample("val", i) for i in range(5)]
    drawn = sampling.meta_batch(0, 0, 3, stored=stored)
    for index, arch in zip(drawn.indices, drawn.architectures, strict=True):
        assert index < 5
        assert dataclasses.replace(arch, C=16, fc_dim=1) == dataclasses.replace(stored[index], C=16, fc_dim=1)


def test_wider_networks_for_large_images():
    def mean_width(**kwargs) -> float:
        drawn = [sampling.meta_batch(0, step, 2, **kwargs) for step in range(8)]
        return float(np.mean([arch.C for batch in drawn for arch in batch.architectures]))

    assert mean_width(image_size=224, draw="wider") > 1.1 * mean_width(image_size=224)
    assert mean_width(draw="wider") == mean_width()


def test_one_network_in_eight_without_batch_norm():
    drawn = [sampling.meta_batch(0, step, 8, draw="norm_free") for step in range(20)]
    norm_free = [arch for batch in drawn for arch in batch.architectures if not arch.norm]
    assert 10 <= len(norm_free) <= 35
    assert max(arch.n_cells for arch in norm_free) > 10  # of the published ones shallow networks alone


def test_lighter_networks_cost_half():
    def works(draw: str) -> list[int]:
        drawn = [sampling.meta_batch(0, step, 8, draw=draw) for step in range(20)]
        return [network.work for batch in drawn for network in batch.networks]

    lighter = works("lighter")
    assert max(lighter) <= 175e6
    assert 0.4 < np.mean(lighter) / np.mean(works("norm_free")) < 0.7


def test_predefined_architectures():
    assert named("resnet50").num_parameters == 23_520_842
    assert named("ViT", num_classes=1000, image_size=224).graph.shapes[-1] == (1000,)
    with pytest.raises(ValueError, match=r"`arch` \(='resnet18'\) is unknown: did you mean 'resnet50'\?"):
        named("resnet18")


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"`split` \(='tain'\) is unknown: did you mean 'train'"):
        sample("tain", 0)
    for index in (500, -1):
        with pytest.raises(
            ValueError, match=rf"`index` \(={index}\) is outside the split 'val': .* 0 to 499"
        ):
            sample("val", index)


def test_graphs_are_like_the_published_ones():
    """The published sample of training graphs has 192 ± 95 nodes, of degree 2.3."""
    graphs = [lower(sample("train", index, image_size=CIFAR_SIZE)).graph for index in range(200)]
    nodes = np.array([graph.num_nodes for graph in graphs])
    degree = np.mean([2 * len(graph.senders) / graph.num_nodes for graph in graphs])
    assert 150 < nodes.mean() < 230 and 70 < nodes.std() < 120
    assert 2.1 < degree < 2.5


def test_narrow_draw_is_light_and_a_function_of_the_step():
    drawn = meta_batch(0, 3, 8, draw="narrow")
    assert drawn.architectures == meta_batch(0, 3, 8, draw="narrow").architectures
    assert drawn.indices != meta_batch(0, 4, 8, draw="narrow").indices
    assert max(network.work for network in drawn.networks) <= 70e6
    for index, arch in zip(drawn.indices, drawn.architectures, strict=True):
        assert arch == dataclasses.replace(sample("train", index), C=CHANNELS[0], fc_dim=FC_DIMS[0])
    drawn = meta_batch(0, 8, 4, image_size=16, draw="narrow")
    assert max(network.flat_size for network in drawn.networks) <= 1 << 20  # else one of 1,670,000


def test_narrow_draw_of_heavy_architectures_is_refused():
    heavy = [arch for arch in map(lambda i: sample("train", i), range(40)) if lower(arch).work > 2e8]
    with pytest.raises(ValueError, match=r"`draw` \(='narrow'\) finds no network light enough among"):
        meta_batch(0, 0, 2, stored=heavy[:1], draw="narrow")
