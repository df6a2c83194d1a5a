"""Networks for images of any size."""

import hashlib

import numpy as np
import pytest

from ghn_jax.deepnets.architectures import NAMED
from ghn_jax.deepnets.image_sizes import Patches, check_image_size, patches, stem_stride
from ghn_jax.deepnets.lowering import lower, lower_resnet50
from ghn_jax.deepnets.sampling import meta_batch, sample
from ghn_jax.models.config import preset
from ghn_jax.models.templates import deepnets_templates, make_plan


def test_published_sizes_have_the_published_stems():
    assert [stem_stride(size) for size in (16, 32, 64, 96, 128, 224, 512)] == [1, 1, 2, 2, 4, 4, 4]
    assert patches(32) == Patches(3, 1, 11)
    assert patches(224) == Patches(16, 0, 14)
    for size in range(32, 513, 32):
        patch = patches(size)
        assert (size + 2 * patch.padding) // patch.size == patch.count <= 14
        assert patch.count * patch.size >= size


@pytest.mark.parametrize(
    ("size", "nearest"), [(100, 96), (28, 32), (0, 32), (-64, 32), (1000, 512), (48, 64)]
)
def test_other_sizes_are_refused(size, nearest):
    with pytest.raises(ValueError, match=rf"`image_size` \(={size}\) must be .*: choose {nearest},"):
        check_image_size(size)
    with pytest.raises(ValueError, match="`image_size`"):
        lower_resnet50(10, size)


@pytest.mark.parametrize("image_size", [16, 32, 64, 96, 128, 160, 256])
def test_templates_cover_networks(image_size):
    config = preset("ghn2", 10, image_size)
    templates = deepnets_templates(config, image_size)
    networks = [*meta_batch(0, 0, 4, 10, image_size).networks]
    networks += [lower(NAMED["vit"], 10, image_size), lower_resnet50(10, image_size)]
    for network in networks:
        plan = make_plan(network, config, templates)
        assert (plan.rows[: plan.num_rows] < plan.rows.max() + 1).all()
    encoding = next(p for p in networks[-2].parameters if p.name == "pos_enc.weight")
    assert encoding.shape[2:] == (patches(image_size).count,) * 2


def test_splits_have_the_same_architectures_at_all_sizes():
    for index in range(3):
        sampled = [sample("test", index, image_size=size) for size in (32, 64, 96, 224)]
        assert len({arch.genotype for arch in sampled}) == 1
        assert len({(arch.n_cells, arch.stem_type, arch.glob_avg) for arch in sampled}) == 1


@pytest.mark.parametrize(("image_size", "digest"), [(32, "5935c1cd808625da"), (224, "98ae247f8d951124")])
def test_networks_of_the_published_sizes_are_as_ever(image_size, digest):
    """Graphs, parameters and plans; the digests were made before other sizes were possible."""
    config = preset("ghn2", 10, image_size)
    templates = deepnets_templates(config, image_size)
    found = hashlib.sha256(repr(templates).encode())
    networks = [lower(sample("train", index, image_size=image_size), 10, image_size) for index in range(12)]
    networks += [lower(NAMED["vit"], 10, image_size), lower_resnet50(10, image_size)]
    for network in networks:
        graph, plan = network.graph, make_plan(network, config, templates)
        shapes = [(parameter.name, parameter.shape) for parameter in network.parameters]
        found.update(repr((graph.names, graph.shapes, shapes)).encode())
        arrays = graph.primitives, graph.senders, graph.receivers, plan.nodes, plan.scales, plan.starts
        for array in (*arrays, plan.row_starts, plan.rows, plan.num_rows):
            found.update(np.ascontiguousarray(array).tobytes())
    assert found.hexdigest()[:16] == digest
