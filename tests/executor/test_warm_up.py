"""Compiling blocks ahead of the networks."""

import concurrent.futures
from typing import Any, cast

import jax
import jax.numpy as jnp

from ghn_jax.deepnets.architectures import Architecture, Genotype
from ghn_jax.deepnets.lowering import lower
from ghn_jax.executor import compiler_options, run
from ghn_jax.executor.blocks import Attention, Convolution
from ghn_jax.executor.warm_up import WarmUp
from ghn_jax.training.pmapped import replicate

CELL = (("sep_conv_3x3", 0), ("skip_connect", 1))
NETWORK = lower(Architecture(Genotype(CELL, (2,), CELL, (2,)), n_cells=2, C=16, fc_dim=64, fc_layers=1))
IMAGES = (4, 32, 32, 3)


def test_what_is_compiled_ahead_is_what_a_step_runs():
    """Also on parameters from a pmapped function, whose arrays remember the mesh they come from."""
    WarmUp(IMAGES, jax.local_devices())([NETWORK.program])
    compiled = run._compiled.cache_info().misses
    decoded = replicate(jnp.zeros(NETWORK.flat_size), jax.devices())
    shard = decoded.addressable_shards[0]
    flat = jax.device_put(shard.data, shard.device)
    images, labels = (
        jax.device_put(jnp.zeros(s, t), shard.device) for s, t in ((IMAGES, float), ((4,), int))
    )
    run.loss_and_gradient(NETWORK.program, flat, images, labels)
    assert compiled > 0
    assert run._compiled.cache_info().misses == compiled


def test_cuts_are_compiled_once_for_programs_of_any_length():
    deep = lower(Architecture(Genotype(CELL, (2,), CELL, (2,)), n_cells=20, C=16, fc_dim=64, fc_layers=1))
    assert len(deep.program) > 64 > len(NETWORK.program)
    flat, cut = jnp.zeros(deep.flat_size), cast(Any, run._cut)
    cut.clear_cache()
    run.load_weights(deep.program, flat)
    compiled = cut._cache_size()
    run.load_weights(NETWORK.program, flat)
    assert cut._cache_size() == compiled > 0


def test_what_is_left_is_told():
    warm_up = WarmUp(IMAGES, jax.local_devices())
    jobs = [concurrent.futures.Future() for _ in NETWORK.program]
    kinds = [type(instruction.block).__name__ for instruction in NETWORK.program]
    warm_up._jobs = list(zip(kinds, jobs, strict=True))
    jobs[0].set_result(None)
    assert warm_up.compiling == f"blocks, {len(jobs) - 1} of {len(jobs)} left ({kinds[1]})"
    for job in jobs[1:]:
        job.set_result(None)
    assert warm_up.compiling == ""


def test_on_a_gpu_ways_are_tried_of_dense_convolutions_alone(monkeypatch):
    """Untried, XLA takes one that is up to 300 times slower; of all blocks it would take minutes."""
    monkeypatch.setattr(compiler_options, "on_cpu", lambda: False)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(compiler_options, "knows", lambda name, value: True)
    dense, pointwise = (Convolution(kernel, 32, 32) for kernel in ((3, 3), (1, 1)))
    untried = {"xla_gpu_autotune_level": "0"}
    assert [compiler_options.options_for(p) for p in (dense, "fused")] == [{}, {}]
    assert [compiler_options.options_for(p) for p in (pointwise, Attention(32, 32), "ghn")] == [untried] * 3
