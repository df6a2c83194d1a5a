import functools
import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.deepnets.networks import from_params, to_params
from ghn_jax.targets import NAMES, mark, target
from ghn_jax.targets.layers import adaptive_average_pool, max_pool

NUM_PARAMS = {  # as published by torchvision, for 1000 classes
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
    "alexnet": 61_100_840,
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_small": 2_542_856,
    "mobilenet_v3_large": 5_483_032,
    "mnasnet1_0": 4_383_312,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "squeezenet1_0": 1_248_424,
    "squeezenet1_1": 1_235_496,
    "shufflenet_v2_x1_0": 2_278_604,
    "regnet_x_400mf": 5_495_976,
    "regnet_y_400mf": 4_344_144,
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
    "vit_b_16": 86_567_656,
    "vit_b_32": 88_224_232,
    "swin_t": 28_288_354,
    "swin_s": 49_606_258,
    "swin_b": 87_768_224,
}


def images(size: int, batch: int = 2) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)


@functools.cache
def traced(name: str, num_classes: int, image_size: int):
    """The abstract logits and variables of a network."""
    module = target(name, num_classes, image_size)
    return jax.eval_shape(module.init_with_output, jax.random.key(0), images(image_size))


@pytest.mark.parametrize("name", NAMES)
def test_number_of_parameters_is_the_published_one(name):
    logits, variables = traced(name, 1000, 224)
    assert logits.shape == (2, 1000)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == NUM_PARAMS[name]


@pytest.mark.parametrize("name", NAMES)
def test_small_variant_classifies_small_images(name):
    logits, _ = traced(name, 10, 32)
    assert logits.shape == (2, 10)


GOLDEN = ("convnext_tiny", "mobilenet_v2", "regnet_y_400mf", "vit_b_16")


@pytest.mark.parametrize("name", GOLDEN)
def test_names_and_shapes_are_those_of_torchvision(name, golden):
    expected = json.loads((golden / "torchvision_shapes.json").read_text())[name]
    _, variables = traced(name, expected["num_classes"], expected["image_size"])
    params = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), variables["params"])
    tensors = from_params(params)
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == expected["shapes"]
    assert jax.tree.map(np.shape, to_params(tensors)) == jax.tree.map(np.shape, params)


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "alexnet", "squeezenet1_0", "mobilenet_v2"])
def test_takes_larger_images(name):
    _, variables = traced(name, 1000, 224)
    logits = jax.eval_shape(target(name).apply, variables, images(288))
    assert logits.shape == (2, 1000)


@pytest.mark.parametrize("rngs", [None, {"dropout": jax.random.key(1)}])
def test_training_updates_statistics_and_drops_out_if_there_is_a_key(rngs):
    _, variables = traced("mobilenet_v2", 10, 32)
    module = target("mobilenet_v2", 10, 32)

    def step(variables, x):
        return module.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)

    (logits, updated), jaxpr = jax.eval_shape(step, variables, images(32)), jax.make_jaxpr(step)
    assert logits.shape == (2, 10)
    assert jax.tree.structure(updated["batch_stats"]) == jax.tree.structure(variables["batch_stats"])
    assert ("random_bits" in str(jaxpr(variables, images(32)))) == (rngs is not None)


def test_pools_as_torch_does():
    assert jax.eval_shape(lambda x: max_pool(x, 3, ceil=True), images(54)).shape == (2, 27, 27, 3)
    assert jax.eval_shape(lambda x: max_pool(x, 3, ceil=True), images(55)).shape == (2, 27, 27, 3)
    assert jax.eval_shape(lambda x: max_pool(x, 3, padding=1), images(112)).shape == (2, 56, 56, 3)
    ramp = np.arange(4, dtype=np.float32)[None, :, None, None] + np.zeros((1, 4, 7, 1), np.float32)
    pooled = adaptive_average_pool(jnp.asarray(ramp), 7)
    np.testing.assert_allclose(pooled[0, :, 0, 0], [0, 0.5, 1, 1.5, 2, 2.5, 3])


@pytest.mark.parametrize(("name", "size"), [("vgg11", 224), ("vgg11", 32), ("alexnet", 224)])
def test_average_pool_is_marked(name, size):
    _, variables = traced(name, 10, size)
    jaxpr = jax.make_jaxpr(target(name, 10, size).apply)(variables, images(size))
    names = [str(eqn.params["name"]) for eqn in jaxpr.eqns if eqn.primitive.name == "name"]
    assert names == ["ghn_jax.glob_avg"]


def test_mark_changes_nothing():
    assert jax.eval_shape(lambda x: mark(x, "glob_avg"), images(8)) == images(8)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"`arch` \(='resnet51'\).*'resnet50'"):
        target("resnet51")
    with pytest.raises(ValueError, match=r"`image_size` \(=64\)"):
        target("resnet18", image_size=64)
    with pytest.raises(ValueError, match="`images` of shape"):
        jax.eval_shape(target("vit_b_16").init, jax.random.key(0), images(256))
    with pytest.raises(ValueError, match="running_mean"):
        to_params({"bn1.running_mean": np.zeros(3)})
    with pytest.raises(ValueError, match="layer_scale"):
        to_params({"layer_scale": np.zeros(3)})


def test_names_are_all_modules():
    assert set(NUM_PARAMS) == set(NAMES)
    assert all(isinstance(target(name), nn.Module) for name in NAMES)
    assert math.prod(traced("vit_b_16", 10, 32)[1]["params"]["encoder"]["pos_embedding"].shape) == 65 * 768
