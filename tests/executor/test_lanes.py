"""Networks side by side on the cores of a CPU."""

import os
import subprocess
import sys
import threading

import pytest

from ghn_jax.deepnets.architectures import Architecture, Genotype
from ghn_jax.deepnets.lowering import lower
from ghn_jax.executor import lanes
from ghn_jax.executor.lanes import run_in_lanes
from ghn_jax.models.config import preset
from ghn_jax.models.templates import deepnets_templates
from ghn_jax.training.prepare import prepare

COMPUTE = """
import os, sys
import jax, jax.numpy as jnp
from ghn_jax.executor import lanes

if sys.argv[1] == "shared":
    lanes.share_cores()
product = jax.jit(lambda x: x @ x)
x = jnp.ones((1024, 1024))
product(x).block_until_ready()
print(product(x).is_ready(), len(os.listdir("/proc/self/task")), os.environ.get("PJRT_NPROC"))
"""
several_cores = pytest.mark.skipif(lanes._ON_CPU < 2, reason="one core is not shared")
linux = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")


def compute(how: str, **environment: str) -> tuple[bool, int, str]:
    """Whether a computation is done when the call returns, and the threads and setting of its process."""
    kept = {name: value for name, value in os.environ.items() if name != "PJRT_NPROC"}
    command = [sys.executable, "-c", COMPUTE, how]
    done = subprocess.run(command, env=kept | environment, check=True, capture_output=True, text=True)
    ready, threads, setting = done.stdout.split()
    return ready == "True", int(threads), setting


@linux
@several_cores
def test_a_computation_runs_on_the_thread_that_calls_for_it():
    ready, threads, _ = compute("shared")
    assert ready
    assert threads < compute("alone")[1]


@linux
def test_a_number_of_threads_that_is_set_is_kept():
    assert compute("shared", PJRT_NPROC="3")[2] == "3"


@several_cores
def test_two_run_at_a_time_and_come_in_order():
    both = threading.Barrier(2, timeout=60)  # neither passes alone

    def run(index: int) -> int:
        both.wait()
        return index

    assert list(run_in_lanes(run, 6)) == list(range(6))


def test_an_error_in_a_lane_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(run_in_lanes(lambda index: 1 // (1 - index), 3))


@several_cores
def test_what_runs_is_not_waited_for_when_a_signal_comes():
    go_on, ended = threading.Event(), threading.Event()

    def run(index: int) -> int:
        if index:
            go_on.wait(timeout=60)
            ended.set()
        return index

    rows = run_in_lanes(run, 4)
    assert next(rows) == 0
    with pytest.raises(KeyboardInterrupt):
        rows.throw(KeyboardInterrupt)
    assert not ended.is_set()
    go_on.set()


def test_networks_of_a_meta_batch_run_longest_first():
    cell = (("conv_5x5", 0), ("skip_connect", 1))
    genotype = Genotype(cell, (2,), cell, (2,))
    networks = (
        lower(Architecture(genotype, n_cells=2, C=64, stem_type=1, stem_pool=True)),  # of small maps
        lower(Architecture(genotype, n_cells=4, C=16)),
        lower(Architecture(genotype, n_cells=3, C=16)),
    )
    parameters = [network.num_parameters for network in networks]
    assert parameters[0] == max(parameters)  # which is not what takes long
    config = preset("ghn2")
    batch = prepare(networks, config, deepnets_templates(config, 32), num_devices=1)
    assert batch.places == [[1], [2], [0]]
    works = [network.work for (network,) in batch.networks]
    assert works == sorted(works, reverse=True)
