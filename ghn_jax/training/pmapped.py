"""Functions that run on all devices at once, compiled with options of ours.

jax.pmap itself takes no compiler options, but what it lowers to does, within one process.
"""

import functools
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import numpy as np

from ghn_jax.executor.compiler_options import Options

AXIS = "device"
"""Name of the axis over devices, for collective operations."""


def pmapped(function: Callable, devices: Sequence[Any], options: Options, **pmap_options: Any) -> Callable:
    """`function` over devices: arrays have a leading device axis; keyword arguments of a call are static.

    Compiles when called with arrays of new shapes.

    Args:
      devices: of all processes.
      options: for XLA, from `ghn_jax.executor.compiler_options`.
      pmap_options: as of jax.pmap: in_axes, donate_argnums.
    """
    compiled: dict[Hashable, Callable] = {}
    lock = threading.Lock()  # callers may be threads that need the same

    def call(*arrays: Any, **static: Hashable) -> Any:
        leaves, structure = jax.tree.flatten(arrays)
        key = structure, tuple((x.shape, x.dtype) for x in leaves), tuple(static.items())
        with lock:
            if key not in compiled:
                mapped = jax.pmap(
                    functools.partial(function, **static), axis_name=AXIS, devices=devices, **pmap_options
                )
                # across processes only pmap itself makes global arrays of local ones
                alone = jax.process_count() == 1
                compiled[key] = mapped.lower(*arrays).compile(compiler_options=options) if alone else mapped
        return compiled[key](*arrays)

    return call


def replicate(tree: Any, devices: Sequence[Any]) -> Any:
    """Arrays copied to each device of this process, with a leading device axis. `devices`: of all processes."""
    own = sum(device.process_index == jax.process_index() for device in devices)
    return _copier(tuple(devices))(np.zeros(own), tree)


@functools.cache
def _copier(devices: tuple[Any, ...]) -> Callable:
    return jax.pmap(lambda _, tree: tree, in_axes=(0, None), devices=devices)


def unreplicate(tree: Any) -> Any:
    """The first device's copy, on the host."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0))[0], tree)
