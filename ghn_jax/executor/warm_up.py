"""Compiles the blocks of networks before they are run, several at a time.

XLA compiles on one thread and without Python's lock. So blocks that a network is the first to need are compiled on
all cores, in the background while the networks before it run.
"""

import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ghn_jax.executor import blocks, run
from ghn_jax.executor.blocks import Block
from ghn_jax.executor.program import IMAGE
from ghn_jax.executor.run import Program

Shape = tuple[int, ...]
Signature = tuple[Block, tuple[Shape, ...]]


class WarmUp:
    """Compiles, once, whatever the networks given to it need on some devices for images of one shape and precision."""

    def __init__(self, images: Shape, devices: Sequence[Any], dtype: Any = jnp.float32):
        self._images, self._devices, self._dtype = images, devices, dtype
        self._seen: set[Signature] = set()
        self._pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
        self._jobs: list[tuple[str, concurrent.futures.Future[Any]]] = []

    @property
    def compiling(self) -> str:
        """How many programs are left of those asked for last, and which kind is next; empty if none are."""
        jobs = self._jobs
        left = [kind for kind, job in jobs if not job.done()]
        return f"blocks, {len(left)} of {len(jobs)} left ({left[0]})" if left else ""

    def __call__(self, programs: Iterable[Program], others: Iterable[Callable[[], Any]] = ()) -> None:
        """Returns when everything new is compiled, forward and backward.

        Args:
          others: what compiles functions of the GHN, which take longer than a block: they come first.
        """
        new = []
        for program in programs:
            for signature in signatures(program, self._images):
                if signature not in self._seen:
                    self._seen.add(signature)
                    new.append(signature)
        self._jobs = [("GHN", self._pool.submit(compile_other)) for compile_other in others]
        self._jobs += [
            (type(signature[0]).__name__, self._pool.submit(_compile, signature, device, self._dtype))
            for signature in new
            for device in self._devices
        ]
        for _, job in self._jobs:
            job.result()


def signatures(program: Program, images: Shape) -> list[Signature]:
    """Each instruction's block and the shapes of its inputs."""
    shapes, found = {IMAGE: images}, []
    for instruction in program:
        signature = instruction.block, tuple(shapes[r] for r in instruction.inputs)
        shapes[instruction.output] = output_shape(*signature)
        found.append(signature)
    return found


@functools.cache
def output_shape(block: Block, inputs: tuple[Shape, ...]) -> Shape:
    """The shape of a block's output, from those of its inputs."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in inputs]
    weights = jax.ShapeDtypeStruct((blocks.piece_size(block),), jnp.float32)
    if isinstance(block, blocks.Dropout):
        return inputs[0]
    return jax.eval_shape(functools.partial(blocks.apply, block), weights, *arrays).shape


def _compile(signature: Signature, device: Any, dtype: Any) -> None:
    """Runs a block once, on zeros on the device: the surest way to what later calls will look up."""
    block, shapes = signature

    def zeros(shape: Shape, dtype: Any) -> Array:
        return jax.device_put(np.zeros(shape, dtype), device)

    weights = zeros((blocks.piece_size(block),), np.float32)
    inputs = [zeros(shape, dtype) for shape in shapes]
    if isinstance(block, blocks.Dropout):
        inputs.append(jax.device_put(jax.random.key(0), device))
    run.pull_back(block, weights, run.forward_block(block, weights, *inputs), inputs)
