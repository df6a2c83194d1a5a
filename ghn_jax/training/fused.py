"""A step of meta-training with the fused executor: each device runs networks of its own, all of them at once.

The devices of a slot run one program, hence networks of one family; those that have none left run an empty table.
Which device runs a network is independent of which one embeds it: node embeddings are small, so all devices get
all of them, and the gradients of these go back the same way. So the result of a step does not depend on how the
meta-batch is spread. Between embedding and update nothing is read back by the host.

Everything but running the networks is in `ghn_jax.training.meta`.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from ghn_jax.deepnets.architectures import Architecture
from ghn_jax.deepnets.families import family_of
from ghn_jax.executor import fused
from ghn_jax.executor.compiler_options import options_for
from ghn_jax.executor.instruction_set import FLAT_SIZES, InstructionSet
from ghn_jax.executor.layouts import ROW
from ghn_jax.executor.program import Lowered
from ghn_jax.executor.table import MAX_PLACES, Assembled, assemble, empty_table
from ghn_jax.models.config import GHNConfig
from ghn_jax.models.ghn import encode
from ghn_jax.models.templates import Plan, PlanSize, Template, make_plan, plan_size
from ghn_jax.training.meta import GHNStep, Metrics, TrainState
from ghn_jax.training.pmapped import AXIS, Pmapped
from ghn_jax.training.prepare import check_divides, stack, stack_graphs

_LARGEST_MAP = 56  # of a cell, for images of 224 pixels
_PLACES_PER_PIXEL = 8192

InstructionSets = Callable[[int, int], InstructionSet]
"""From a family and the length of the flat vector."""


class Slot(NamedTuple):
    """What the devices do at the same time; arrays have a leading device axis.

    Attributes:
      family: of all the networks.
      plans: how to decode them.
      tables: how to run them.
      places: their places in the meta-batch; 0 for an empty table.
    """

    family: int
    plans: Plan
    tables: Int[np.ndarray, "device row 7"]
    places: Int[np.ndarray, " device"]


class FusedBatch(NamedTuple):
    """A meta-batch, spread over devices.

    Attributes:
      graphs: the graphs that each device embeds, padded alike: in the order of the meta-batch.
      max_nodes: nodes per graph in the dense layout.
      slots: what to run.
      places: for each device, the place in the meta-batch of the network in each slot; padded to its size.
    """

    graphs: jraph.GraphsTuple
    max_nodes: int
    slots: list[Slot]
    places: Int[np.ndarray, "device network"]


class FusedStep(NamedTuple):
    """The functions of a step besides `GHNStep`; all pmapped, arrays have a leading device axis.

    Attributes:
      spread: (nodes, gradients, places, dropout key) -> both for the networks of each slot instead of the device's
        own share, scores (loss and accuracy of each network) of zero, the key on each device.
      execute: for a family and a length of the flat vector, the function (memory, scores, tables, flat vectors, images,
        labels, keys, places) -> memory, scores, gradient of the flat vectors.
      collect: (gradients, scores, places) -> gradients, losses and accuracies of each device's share.
    """

    spread: Callable
    execute: Callable[[int, int], Callable]
    collect: Callable


def make_fused_step(
    instruction_sets: InstructionSets, devices: Sequence[Any], label_smoothing: float = 0.0
) -> FusedStep:
    """Builds the functions; they compile when first used."""
    pmap = functools.partial(Pmapped, devices=devices)
    options = options_for("ghn")

    def spread(nodes, gradients, places, dropout_key):
        nodes = lax.all_gather(nodes, AXIS, tiled=True)[places]
        scores = jnp.zeros((len(places), 2))
        return nodes, gradients._replace(nodes=jnp.zeros_like(nodes)), scores, dropout_key

    @functools.cache
    def execute(family: int, flat_size: int) -> Callable:
        instructions = instruction_sets(family, flat_size)

        def execute_family(memory, scores, table, flat, images, labels, dropout_key, place):
            key = jax.random.fold_in(dropout_key, place)
            group = place % len(images)
            images, labels = images[group], labels[group]
            outcome, memory = fused.loss_and_gradient(
                instructions, memory, table, flat, images, labels, key, label_smoothing
            )
            hits = (outcome.logits.argmax(-1) == labels).mean()
            ran = jnp.where(fused.is_empty(table), 0.0, jnp.stack([outcome.loss, hits]))
            return memory, scores.at[place].add(ran), outcome.gradient

        return pmap(execute_family, options=options_for("fused"), donate_argnums=(0, 1))

    def collect(gradients, scores, places):
        nodes = jnp.zeros_like(gradients.nodes).at[places].add(gradients.nodes)
        nodes, scores = lax.psum_scatter((nodes, scores), AXIS, tiled=True)
        return gradients._replace(nodes=nodes), scores[:, 0], scores[:, 1]

    return FusedStep(
        pmap(spread, options=options, in_axes=(0, 0, 0, None)), execute, pmap(collect, options=options)
    )


def memory_size(images: tuple[int, ...]) -> int:
    """Places for training architectures and images of this shape; the largest of 8,000 needed 70 % of them."""
    batch_size, side = images[:2]
    return min(batch_size * min(side, _LARGEST_MAP) ** 2 * _PLACES_PER_PIXEL, MAX_PLACES)


def make_memory(size: int, devices: Sequence[Any]) -> Float[Array, "device place"]:
    """Room to run networks in, on each device of this process."""
    own = sum(device.process_index == jax.process_index() for device in devices)
    return jax.pmap(lambda _: jnp.zeros(size), devices=devices)(np.zeros(own))


def meta_step(
    ghn: GHNStep,
    step: FusedStep,
    state: TrainState,
    batch: FusedBatch,
    images: Float[Array, "device group batch height width 3"],
    labels: Int[Array, "device group batch"],
    dropout_key: Array,
    memory: Float[Array, "device place"],
) -> tuple[TrainState, Metrics, Float[Array, "device place"]]:
    """As `ghn_jax.training.meta.meta_step`; the memory, from `make_memory`, is handed on from step to step."""
    graphs = batch.graphs
    nodes, gradients = ghn.embed(state.params, graphs, max_nodes=batch.max_nodes)
    nodes, gradients, scores, keys = step.spread(nodes, gradients, batch.places, dropout_key)
    for number, slot in enumerate(batch.slots):
        flat = ghn.decode(state.params, nodes, np.int32(number), slot.plans)
        memory, scores, flat_gradient = step.execute(slot.family, slot.plans.flat_size)(
            memory, scores, slot.tables, flat, images, labels, keys, slot.places
        )
        own = ghn.pull_back(state.params, nodes, np.int32(number), slot.plans, flat_gradient)
        gradients = ghn.add(gradients, np.int32(number), own)
    gradients, losses, hits = step.collect(gradients, scores, batch.places)
    gradient = ghn.pull_back_nodes(state.params, graphs, gradients, max_nodes=batch.max_nodes)
    return *ghn.update(state, gradient, losses, hits), memory


def prepare(
    architectures: Sequence[Architecture],
    networks: Sequence[Lowered],
    config: GHNConfig,
    templates: tuple[Template, ...],
    instruction_sets: InstructionSets,
    memory_size: int,
    num_devices: int,
    own: Sequence[int] | None = None,
) -> FusedBatch:
    """Spreads networks over devices, and pads and stacks their arrays.

    Args:
      networks: the architectures, lowered.
      memory_size: length of the memory.
      num_devices: of all processes.
      own: which of them are of this process; None for all.

    Raises ValueError if they do not divide over the devices, or if a network is in no family or does not fit.
    """
    check_divides(len(networks), num_devices)
    own = range(num_devices) if own is None else own
    families = [family_of(arch) for arch in architectures]
    sizes, assembled = [], []
    for place, (network, family) in enumerate(zip(networks, families, strict=True)):
        size = plan_size(network, config, templates)
        size, needs = _assemble(network, size, functools.partial(instruction_sets, family))
        if needs.memory_size > memory_size:
            raise ValueError(
                f"`memory_size` (={memory_size}) is {needs.memory_size - memory_size} too small for network {place} of "
                "the meta-batch: lower the batch size, or use the executor blocks"
            )
        sizes.append(size)
        assembled.append(needs)

    def kind(place: int) -> tuple[int, int]:
        return families[place], sizes[place].rows

    # networks of the same program together, then those that take about the same time
    order = sorted(range(len(networks)), key=lambda place: (*kind(place), len(networks[place].program)))
    slots, places = [], np.zeros((num_devices, len(networks)), np.int32)
    for (family, rows), group in itertools.groupby(order, kind):
        for chosen in _chunks(list(group), num_devices):
            size = PlanSize(max(sizes[place].places for place in chosen), rows)
            plans = [make_plan(networks[place], config, templates, size) for place in chosen]
            tables = [assembled[place].table for place in chosen]
            empty = num_devices - len(chosen)
            plans, tables = plans + [_empty_plan(size, templates)] * empty, tables + [empty_table()] * empty
            places[: len(chosen), len(slots)] = chosen
            here = np.take(places[:, len(slots)], own)
            slots.append(
                Slot(family, stack([plans[d] for d in own]), np.stack([tables[d] for d in own]), here)
            )
    shares = _chunks([encode(network.graph, config) for network in networks], len(networks) // num_devices)
    graphs, max_nodes = stack_graphs(shares, own)
    return FusedBatch(graphs, max_nodes, slots, places[np.array(own)])


def _chunks(items: list, size: int) -> list[list]:
    return [items[first : first + size] for first in range(0, len(items), size)]


def _assemble(
    network: Lowered, size: PlanSize, instruction_set: Callable[[int], InstructionSet]
) -> tuple[PlanSize, Assembled]:
    """The network as a table for the shortest flat vector that holds it, and the size of its plan then."""
    for flat_size in FLAT_SIZES:
        if flat_size >= size.rows * ROW:
            assembled = assemble(network.program, instruction_set(flat_size))
            if assembled.flat_size <= flat_size:
                return size._replace(rows=flat_size // ROW), assembled
    raise ValueError(
        f"`network` has {network.num_parameters:,} parameters, which with padding exceed {FLAT_SIZES[-1]:,} places: "
        "use the executor blocks"
    )


def _empty_plan(size: PlanSize, templates: tuple[Template, ...]) -> Plan:
    """Decodes nothing."""
    places, rows, forms = (np.zeros(n, np.int32) for n in (size.places, size.rows, len(templates)))
    scales = np.zeros(size.places, np.float32)
    return Plan(
        places,
        scales,
        np.append(forms, np.int32(0)),
        forms,
        rows,
        np.array(0, np.int32),
        np.full(size.tensors, size.rows, np.int32),
    )
