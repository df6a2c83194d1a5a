"""Compiles the blocks of meta-training's first architectures with our options and with XLA's defaults, and times them.

    python -m benchmarks.compilation
    python -m benchmarks.compilation --against xla_gpu_autotune_level=0  # our options, and with others among them

Nothing is taken from the cache on disk. Run time is weighted by how often a block occurs, so that its sum is the time
of an average architecture as far as these blocks make it up.
"""

import collections
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array

from ghn_jax.deepnets import sampling
from ghn_jax.deepnets.image_sizes import CIFAR_SIZE
from ghn_jax.executor import blocks, run
from ghn_jax.executor.compiler_options import Options, knows, options_for
from ghn_jax.executor.warm_up import Signature, output_shape, signatures
from ghn_jax.runtime import commands


class Cost(NamedTuple):
    """Of a kind of block: seconds of compilation, processor seconds of it, milliseconds of running per architecture."""

    wall: float
    processor: float
    running: float


def main(
    num: int = 100, steps: int = 30, batch: int = 64, runs: int = 3, against: tuple[str, ...] = ()
) -> None:
    """Prints a row for each kind of block, XLA's defaults and our options side by side.

    Args:
      num: blocks, the most frequent ones.
      steps: of meta-training, 8 architectures each, whose blocks are counted.
      batch: images.
      runs: timed runs of each compiled function; the fastest counts.
      against: options of XLA, KEY=VALUE: ours with these changed stand in the place of the defaults.
    """
    changes: Options = dict(_option(text) for text in against)
    networks = [net for step in range(steps) for net in sampling.meta_batch(0, step, 8).networks]
    uses: collections.Counter[Signature] = collections.Counter()
    for network in networks:
        uses.update(signatures(network.program, (batch, CIFAR_SIZE, CIFAR_SIZE, 3)))
    chosen = [(s, n) for s, n in uses.most_common() if not isinstance(s[0], blocks.Dropout)][:num]
    share = sum(n for _, n in chosen) / sum(uses.values())
    print(f"{num} of {len(uses)} blocks, {100 * share:.0f}% of those run by {len(networks)} architectures\n")
    costs: dict[str, list[tuple[Cost, Cost]]] = collections.defaultdict(list)
    for (block, shapes), count in chosen:
        per_network = count / len(networks)
        for function, arguments in functions(block, shapes):
            ours = options_for(block)
            others = ours | changes if changes else {}
            pair = [measure(function, arguments, options, runs, per_network) for options in (others, ours)]
            costs[kind(block)].append((pair[0], pair[1]))
    print(
        "| block | functions | compile, s | ours | on all cores, s | ours | run, ms | ours |\n|" + "---|" * 8
    )
    for name, pairs in sorted(costs.items()):
        print_row(name, pairs)
    print_row("all", [pair for pairs in costs.values() for pair in pairs])


def _option(text: str) -> tuple[str, str | bool]:
    key, _, word = text.partition("=")
    value = {"True": True, "False": False}.get(word, word)
    if not word or not knows(key, value):
        raise ValueError(f"`against` (={text!r}) is no option of the installed XLA: give KEY=VALUE")
    return key, value


def kind(block: blocks.Block) -> str:
    """The name of a row; 1x1 convolutions are products of matrices, apart from the others."""
    dense = isinstance(block, blocks.Convolution) and not block.is_product
    return "Convolution, dense" if dense else type(block).__name__


def functions(
    block: blocks.Block, shapes: tuple[blocks.Shape, ...]
) -> Iterator[tuple[Callable, tuple[Array, ...]]]:
    """Forward and backward pass of a block, with random arguments."""
    rng = np.random.default_rng(0)

    def normal(shape: blocks.Shape) -> Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    weights, *inputs = normal((blocks.piece_size(block),)), *map(normal, shapes)
    yield functools.partial(blocks.apply, block), (weights, *inputs)
    if not isinstance(block, blocks.Add):
        gradient = normal(output_shape(block, shapes))
        yield functools.partial(run.backward, block), (weights, gradient, *inputs)


def measure(
    function: Callable, arguments: tuple[Array, ...], options: Options, runs: int, per_network: float
) -> Cost:
    """Compiles a function, and runs it."""
    lowered = jax.jit(function).lower(*arguments)
    wall, processor = time.perf_counter(), time.process_time()
    compiled = lowered.compile(compiler_options=options)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    jax.block_until_ready(compiled(*arguments))
    fastest = np.inf
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        fastest = min(fastest, time.perf_counter() - start)
    return Cost(wall, processor, 1e3 * fastest * per_network)


def print_row(name: str, pairs: Iterable[tuple[Cost, Cost]]) -> None:
    """Sums over the functions of a kind."""
    default, ours = (np.sum(side, 0) for side in zip(*pairs, strict=True))
    columns = [f"{x:.1f}" for values in zip(default, ours, strict=True) for x in values]
    print(f"| {name} | {len(list(pairs))} | " + " | ".join(columns) + " |", flush=True)


if __name__ == "__main__":
    with commands.errors_as_lines():
        tyro.cli(main)
