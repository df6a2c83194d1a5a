"""The executor against plain Flax modules."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import executor_equality
from ghn_jax.deepnets.architectures import Architecture, Genotype
from ghn_jax.deepnets.lowering import UnreachableOutput, lower
from ghn_jax.deepnets.sampling import named, sample
from ghn_jax.executor import blocks, convolutions, kernels, pools, run
from ghn_jax.executor.layouts import flatten, unflatten

TINY = Genotype(
    (("sep_conv_3x3", 0), ("skip_connect", 1)), (2,), (("conv_3x3", 0), ("max_pool_3x3", 1)), (2,)
)


@pytest.mark.parametrize(("split", "index"), [("train", 3), ("val", 1), ("bnfree", 1), ("dense", 1)])
def test_loss_and_gradient_equal_the_plain_module(split: str, index: int):
    check_equality(dataclasses.replace(sample(split, index), C=32))


def test_padded_channels_change_nothing():
    arch = Architecture(TINY, n_cells=3, C=48)
    assert any(p.layout.outputs.padded_size > p.layout.outputs.size for p in lower(arch).parameters)
    check_equality(arch)


def check_equality(arch: Architecture) -> None:
    case = executor_equality.make_case(arch, batch=4, rng=np.random.default_rng(0))
    errors = executor_equality.compare(case)
    assert errors.loss < 1e-6
    assert errors.gradient < 1e-4
    assert errors.executor_rounding < 1e-3


def test_flat_vector_round_trip():
    network = lower(Architecture(TINY, n_cells=3, C=48, fc_layers=2, glob_avg=False))
    rng = np.random.default_rng(0)
    tensors = {p.name: rng.standard_normal(p.shape).astype(np.float32) for p in network.parameters}
    back = unflatten(network.parameters, flatten(network.parameters, tensors, network.flat_size))
    assert all((back[name] == tensors[name]).all() for name in tensors)


def test_flatten_names_the_wrong_tensor():
    network = lower(Architecture(TINY, n_cells=1))
    with pytest.raises(ValueError, match=r"stem\.0\.weight.*must have shape"):
        flatten(network.parameters, {}, network.flat_size)


def test_dropout_is_random_in_training_and_absent_in_evaluation():
    network = lower(Architecture(TINY, n_cells=1, fc_layers=2))
    assert any(isinstance(i.block, blocks.Dropout) for i in network.program)
    flat = 0.1 * jax.random.normal(jax.random.key(0), (network.flat_size,))
    images, labels = jax.random.normal(jax.random.key(1), (4, 32, 32, 3)), jnp.arange(4)
    outcomes = [
        run.loss_and_gradient(network.program, flat, images, labels, jax.random.key(k)) for k in (0, 0, 1)
    ]
    assert outcomes[0].loss == outcomes[1].loss != outcomes[2].loss
    without = run.loss_and_gradient(network.program, flat, images, labels)
    np.testing.assert_allclose(without.logits, run.logits(network.program, flat, images), rtol=1e-6)


def test_bfloat16_networks_stay_close():
    case = executor_equality.make_case(Architecture(TINY, n_cells=3), batch=8, rng=np.random.default_rng(0))
    program, labels = case.lowered.program, jnp.asarray(case.labels)
    flat = jnp.asarray(flatten(case.lowered.parameters, case.tensors, case.lowered.flat_size))
    exact = run.loss_and_gradient(program, flat, jnp.asarray(case.images), labels)
    rough = run.loss_and_gradient(program, flat, jnp.asarray(case.images, jnp.bfloat16), labels)
    assert rough.gradient.dtype == rough.loss.dtype == rough.logits.dtype == jnp.float32
    np.testing.assert_allclose(rough.loss, exact.loss, rtol=0.02)
    cosine = (
        rough.gradient @ exact.gradient / jnp.linalg.norm(rough.gradient) / jnp.linalg.norm(exact.gradient)
    )
    assert 0.98 < cosine < 1 - 1e-7


def test_micro_batches_give_the_gradient_of_the_batch_without_batch_norm():
    network = lower(Architecture(TINY, n_cells=2, norm=False))
    rng = np.random.default_rng(0)
    tensors = {
        p.name: rng.standard_normal(p.shape).astype(np.float32) / np.sqrt(np.prod(p.shape[1:]))
        for p in network.parameters
    }
    flat = jnp.asarray(flatten(network.parameters, tensors, network.flat_size))
    images, labels = jnp.asarray(rng.standard_normal((8, 32, 32, 3)), jnp.float32), jnp.arange(8)
    whole = run.loss_and_gradient(network.program, flat, images, labels, label_smoothing=0.1)
    parts = run.accumulate(network.program, flat, images, labels, 2, label_smoothing=0.1)
    np.testing.assert_allclose(parts.loss, whole.loss, rtol=1e-5)
    np.testing.assert_allclose(parts.logits, whole.logits, atol=1e-5 * np.abs(whole.logits).max())
    difference = np.linalg.norm(parts.gradient - whole.gradient)
    assert difference < 1e-4 * np.linalg.norm(whole.gradient)


def test_few_blocks_make_many_networks():
    seen = [
        {(i.block) for n in range(first, first + 40) for i in lower(sample("val", n)).program}
        for first in (0, 40)
    ]
    assert len(seen[1] - seen[0]) < len(seen[0]) / 2


def test_unreachable_output_is_an_error():
    genotype = Genotype((("none", 0), ("none", 1)), (2,), (("none", 0), ("none", 1)), (2,))
    with pytest.raises(UnreachableOutput, match="none"):
        lower(Architecture(genotype, n_cells=2))


@pytest.mark.parametrize("name", ["darts", "pdarts", "vit", "resnet50"])
def test_named_networks_have_consistent_shapes(name: str):
    network = named(name)
    flat = jax.ShapeDtypeStruct((network.flat_size,), jnp.float32)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    assert jax.eval_shape(lambda f, x: run.logits(network.program, f, x), flat, images).shape == (2, 10)


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "channels"),
    [
        ((7, 7), (1, 1), 4, 8),  # larger than the map
        ((5, 5), (2, 2), 4, 8),  # as well
        ((5, 5), (2, 2), 7, 8),  # phases of different sizes
        ((3, 3), (2, 2), 8, 8),
        ((3, 3), (3, 3), 11, 8),
        ((1, 7), (1, 1), 8, 8),
        ((1, 7), (1, 2), 11, 8),
        ((1, 7), (2, 2), 11, 8),  # a kernel smaller than the stride
        ((3, 3), (1, 1), 8, 32),
        ((5, 5), (2, 2), 12, 64),
        ((7, 1), (1, 1), 9, 64),
    ],
)
def test_cpu_convolutions_equal_native_ones(
    kernel: tuple[int, int], stride: tuple[int, int], size: int, channels: int
):
    x = jax.random.normal(jax.random.key(0), (2, size, size, channels))
    w = jax.random.normal(jax.random.key(1), (*kernel, channels, max(16, channels)))
    padding = (kernel[0] // 2, kernel[1] // 2)

    def both(f):
        out, pull_back = jax.vjp(lambda x, w: f(x, w, stride, padding), x, w)
        return out, *pull_back(jnp.cos(out))

    for ours, native in zip(both(convolutions.convolution), both(convolutions._native), strict=True):
        np.testing.assert_allclose(ours, native, rtol=1e-4, atol=1e-4 * float(jnp.abs(native).max()))


@pytest.mark.parametrize("cpu", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_depthwise_equals_the_native_one(
    stride: int, dilation: int, cpu: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(convolutions, "on_cpu", lambda: cpu)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 16))
    w = jax.random.normal(jax.random.key(1), (3, 3, 16))

    def native(x, w):
        return convolutions._native(
            x, w[:, :, None], (stride, stride), (dilation, dilation), dilation, groups=16
        )

    def both(f):
        out, pull_back = jax.vjp(f, x, w)
        return out, *pull_back(jnp.cos(out))

    ours = both(lambda x, w: convolutions.depthwise(x, w, stride, dilation))
    for a, b in zip(ours, both(native), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def gradients(f, *operands):
    out, pull_back = jax.vjp(f, *operands)
    return out, *pull_back(jnp.cos(out))


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def test_pointwise_convolution_of_large_maps():
    def plain(x, w):
        return convolutions.pointwise(jax.nn.relu(x), w)

    operands = normal(0, 4, 8, 8, 16), normal(1, 16, 24)
    for ours, expected in zip(
        gradients(convolutions._relu_pointwise, *operands), gradients(plain, *operands), strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [9, 800])  # 800: the scores of one head alone are more than a group's
def test_attention_equals_what_autodiff_makes_of_it(tokens):
    def plain(q, k, v, w):
        p = jax.nn.softmax(jnp.einsum("bqhc,bkhc->bhqk", q, k) * q.shape[-1] ** -0.5)
        return jnp.einsum("bhqk,bkhc->bqhc", p, v).reshape(-1, len(w)) @ w

    operands = (*(normal(i, 3, tokens, 8, 4) for i in range(3)), normal(3, 32, 16))
    for ours, expected in zip(
        gradients(kernels.attention, *operands), gradients(plain, *operands), strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 11])
@pytest.mark.parametrize("stride", [1, 2])
def test_max_pool_equals_a_window_reduction(size, stride):
    def plain(x):
        return nn.max_pool(x, (3, 3), (stride, stride), ((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]

    maps = jnp.round(2.0 * normal(0, 2, size, size, 3)).at[0, -1, -1, 0].set(jnp.nan)  # with ties
    np.testing.assert_array_equal(pools.max_pool(maps, stride), plain(maps))
    maps = jnp.nan_to_num(maps)
    (_, ours), (_, expected) = gradients(lambda x: pools.max_pool(x, stride), maps), gradients(plain, maps)
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)


def test_layer_norm_equals_what_autodiff_makes_of_it():
    def plain(x, scale, bias):
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + bias

    operands = normal(0, 5, 16), normal(1, 16), normal(2, 16)
    for ours, expected in zip(
        gradients(kernels.layer_norm, *operands), gradients(plain, *operands), strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
