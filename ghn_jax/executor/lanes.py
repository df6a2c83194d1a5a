"""Networks side by side on a device.

A block is a small program. On the CPU, cut into parts for all cores, it makes them wait for each other, hundreds of
times a network; so two networks run at a time instead, each on its half of the cores. On a GPU or TPU it is done before
Python has started the next one; so several networks are started at a time.
"""

import concurrent.futures
import contextlib
import os
from collections.abc import Callable, Generator
from typing import TypeVar

import jax
import jax.numpy as jnp

from ghn_jax.executor.convolutions import on_cpu

T = TypeVar("T")

_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_ON_CPU = min(2, _CORES)  # more would each keep a network's activations
ON_ACCELERATORS = 4
"""Networks that a GPU or TPU runs at a time (`python -m benchmarks.device` compares)."""
_THREADS = "PJRT_NPROC"
"""Tells XLA on how many threads a CPU is to run a program."""


def share_cores() -> None:
    """Gives each lane its part of the cores, for the whole process: to be called before JAX is first used.

    From then on a computation on the CPU runs on the thread that calls for it, and is done when the call returns.
    """
    os.environ.setdefault(_THREADS, str(_CORES // _ON_CPU))
    with contextlib.suppress(AttributeError):  # an option that another version of jax may not have
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def run_in_lanes(run: Callable[[int], T], count: int) -> Generator[T, None, None]:
    """Yields run(0), ..., run(count - 1), a few of them computed at a time.

    Closed, or interrupted by a signal, it ends at once: what runs is not waited for, since a network takes minutes.
    """
    lanes = _ON_CPU if on_cpu() else ON_ACCELERATORS
    if lanes == 1:
        yield from map(run, range(count))
        return
    wide = jnp.result_type(float) == jnp.float64  # jax's setting is of a thread

    def run_alike(index: int) -> T:
        with jax.enable_x64(wide):
            return run(index)

    pool = concurrent.futures.ThreadPoolExecutor(lanes)
    try:
        yield from pool.map(run_alike, range(count))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
