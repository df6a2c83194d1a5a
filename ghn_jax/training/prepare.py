"""Prepares meta-batches on the host, ahead of the device."""

import concurrent.futures
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, TypeVar

import jax
import jraph
import numpy as np

from ghn_jax.executor.program import Lowered
from ghn_jax.graphs import batch, pad_size
from ghn_jax.models.config import GHNConfig
from ghn_jax.models.ghn import encode
from ghn_jax.models.templates import Plan, PlanSize, Template, make_plan, plan_size

T = TypeVar("T")


class PreparedBatch(NamedTuple):
    """A meta-batch, spread over devices; those of this process alone.

    Attributes:
      graphs: each device's graphs, padded alike; a leading device axis on every array.
      max_nodes: nodes per graph in the dense layout.
      plans: for each slot, the decoding plans of the devices' networks, stacked.
      networks: `networks[slot][device]`.
      places: `places[slot][device]`, the place of that network in the meta-batch.
    """

    graphs: jraph.GraphsTuple
    max_nodes: int
    plans: list[Plan]
    networks: list[list[Lowered]]
    places: list[list[int]]


def prepare(
    networks: tuple[Lowered, ...],
    config: GHNConfig,
    templates: tuple[Template, ...],
    num_devices: int,
    own: Sequence[int] | None = None,
) -> PreparedBatch:
    """Spreads networks over devices, those of a slot of similar size, and pads and stacks their arrays.

    Args:
      num_devices: of all processes.
      own: which of them are of this process; None for all. The others are only counted in to pad alike.

    Raises ValueError if they do not divide over the devices.
    """
    check_divides(len(networks), num_devices)
    sizes = [plan_size(network, config, templates) for network in networks]
    by_size = sorted(range(len(networks)), key=lambda i: (sizes[i].rows, networks[i].flat_size), reverse=True)
    places = [by_size[i : i + num_devices] for i in range(0, len(networks), num_devices)]
    # longest first: what is left for the end is short, however many run at a time
    places.sort(key=lambda slot: max(networks[i].work for i in slot), reverse=True)

    own = range(num_devices) if own is None else own
    plans = []
    for slot in places:
        size = PlanSize(*(max(values) for values in zip(*(sizes[i] for i in slot), strict=True)))
        plans.append(stack([make_plan(networks[slot[d]], config, templates, size) for d in own]))

    encoded = [[encode(networks[slot[d]].graph, config) for slot in places] for d in range(num_devices)]
    graphs, max_nodes = stack_graphs(encoded, own)
    return PreparedBatch(
        graphs,
        max_nodes,
        plans,
        [[networks[slot[d]] for d in own] for slot in places],
        [[slot[d] for d in own] for slot in places],
    )


def check_divides(meta_batch_size: int, num_devices: int) -> None:
    """Raises ValueError for a meta-batch that does not divide over the devices."""
    if meta_batch_size % num_devices:
        raise ValueError(
            f"`meta_batch_size` (={meta_batch_size}) does not divide over {num_devices} devices: "
            f"choose a multiple of {num_devices}"
        )


def stack_graphs(
    shares: Sequence[Sequence[jraph.GraphsTuple]], own: Sequence[int]
) -> tuple[jraph.GraphsTuple, int]:
    """The graphs of each of our own devices, padded as those of all devices need, and nodes per graph."""
    needed = [pad_size([int(g.n_node[0]) for g in gs], [int(g.n_edge[0]) for g in gs]) for gs in shares]
    size = max(needed, key=lambda size: size.nodes)._replace(edges=max(size.edges for size in needed))
    return stack([batch(shares[d], size).graphs for d in own]), size.max_nodes


def stack(trees):
    """Trees of the same structure as one, with a leading axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def prefetch(make: Callable[[int], T], first: int, last: int, ahead: int = 2) -> Generator[T]:
    """Yields make(first), ..., make(last - 1), computed in a background thread up to `ahead` items early."""
    pool = concurrent.futures.ThreadPoolExecutor(max_workers=1)
    try:
        pending = [pool.submit(make, i) for i in range(first, min(first + ahead, last))]
        for i in range(first, last):
            item = pending.pop(0).result()
            if i + ahead < last:
                pending.append(pool.submit(make, i + ahead))
            yield item
    finally:  # what is being made may take a minute to compile
        pool.shutdown(wait=False, cancel_futures=True)
