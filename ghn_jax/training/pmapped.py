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


class Pmapped:
    """A function over devices: arrays have a leading device axis; keyword arguments of a call are static.

    Compiles when called with arrays of new shapes, or ahead of the call.
    """

    def __init__(self, function: Callable, devices: Sequence[Any], options: Options, **pmap_options: Any):
        """Compiles nothing yet.

        Args:
          devices: of all processes.
          options: for XLA, from `ghn_jax.executor.compiler_options`.
          pmap_options: as of jax.pmap: in_axes, donate_argnums.
        """
        self._function, self._devices, self._options = function, devices, options
        self._pmap_options = pmap_options
        self._mapped: dict[Hashable, Any] = {}
        self._programs: dict[Hashable, Program] = {}
        self._lock = threading.Lock()  # callers may be threads that need the same

    def __call__(self, *arrays: Any, **static: Hashable) -> Any:
        """What the function returns."""
        if jax.process_count() > 1:  # across processes only pmap itself makes global arrays of local ones
            return self._pmap(static)(*arrays)
        return self.program(*arrays, **static).compiled()(*arrays)

    def _pmap(self, static: dict[str, Hashable]) -> Any:
        key = tuple(static.items())
        if key not in self._mapped:
            function = functools.partial(self._function, **static)
            self._mapped[key] = jax.pmap(
                function, axis_name=AXIS, devices=self._devices, **self._pmap_options
            )
        return self._mapped[key]

    def program(self, *arrays: Any, **static: Hashable) -> "Program":
        """What runs for arrays of these shapes, compiled or not yet; their jax.ShapeDtypeStruct suffice."""
        leaves, structure = jax.tree.flatten(arrays)
        key = structure, tuple((x.shape, x.dtype) for x in leaves), tuple(static.items())
        with self._lock:
            if key not in self._programs:
                lowered = self._pmap(static).lower(*arrays)
                self._programs[key] = Program(lowered, self._options)
            return self._programs[key]


class Program:
    """A function for arrays of one shape.

    Attributes:
      results: shapes of what it returns.
    """

    def __init__(self, lowered: Any, options: Options):
        self.results = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), lowered.out_info)
        self._compile: Callable[[], Callable] | None = lambda: lowered.compile(compiler_options=options)
        self._lock = threading.Lock()

    @property
    def is_compiled(self) -> bool:
        """Whether `compiled` returns at once."""
        return self._compile is None

    def compiled(self) -> Callable:
        """The function; compiles it if no one has yet."""
        with self._lock:
            if self._compile is not None:
                self._run, self._compile = self._compile(), None  # what it was made of is forgotten
            return self._run


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
