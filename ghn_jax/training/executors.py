"""The two ways to run the networks of a meta-batch, behind one interface.

`blocks` compiles each kind of block once and starts the blocks of a network from Python (`ghn_jax.training.meta`);
`fused` compiles one program per family of networks, which devices run on their own (`ghn_jax.training.fused`).
`docs/training.md` says which one is chosen where, and why.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
from jaxtyping import Array

from ghn_jax.deepnets.families import instruction_set
from ghn_jax.deepnets.sampling import MetaBatch
from ghn_jax.executor.warm_up import WarmUp
from ghn_jax.models.config import GHNConfig
from ghn_jax.models.templates import Template
from ghn_jax.training import fused, meta, prepare
from ghn_jax.training.meta import GHNStep, Metrics, TrainState
from ghn_jax.training.pmapped import replicate

EXECUTORS = ("auto", "blocks", "fused")
PRECISIONS = ("float32", "bfloat16")


class Setting(NamedTuple):
    """What both executors need to know of a run.

    Attributes:
      ghn: the pmapped functions of the GHN, over the devices of all processes.
      images: shape of the images that a network runs on at a time.
      precision: of the networks' computations, one of PRECISIONS; parameters and gradients are float32.
      state: the replicated state that steps will take, or its shapes: the functions of the GHN are then compiled while
        blocks are, rather than after them.
    """

    config: GHNConfig
    templates: tuple[Template, ...]
    ghn: GHNStep
    images: tuple[int, int, int, int]
    label_smoothing: float
    precision: str = "float32"
    state: TrainState | None = None


class Executor(Protocol):
    """Takes meta-training steps."""

    @property
    def compiling(self) -> str:
        """What of the meta-batch being prepared is still to be compiled, in words; empty if nothing is."""
        ...

    def prepare(self, drawn: MetaBatch) -> Any:
        """A meta-batch as this process' devices take it; called in the background. Raises ValueError."""
        ...

    def step(
        self, state: TrainState, batch: Any, images: Array, labels: Array, dropout_key: Array
    ) -> tuple[TrainState, Metrics]:
        """One step, on a replicated state; images (group, batch, height, width, 3), as in `meta.meta_step`."""
        ...


def make_executor(name: str, setting: Setting, batch_size: int) -> Executor:
    """The executor called `name`, one of EXECUTORS; "auto" is blocks.

    Raises ValueError for micro-batches or another precision than float32 with fused.
    """
    if name == "fused":
        if setting.images[0] != batch_size:
            raise ValueError(
                f"`micro_batch_size` (={setting.images[0]}) is for the executor blocks: leave it out, or use that"
            )
        if setting.precision != "float32":
            raise ValueError(
                f"`precision` (={setting.precision}) is for the executor blocks: leave it out, or use that"
            )
        return _Fused(setting)
    return _Blocks(setting)


class _Blocks:
    def __init__(self, setting: Setting):
        self._setting = setting
        self._warm_up = WarmUp(setting.images, jax.local_devices(), setting.precision)

    @property
    def compiling(self) -> str:
        return self._warm_up.compiling

    def prepare(self, drawn: MetaBatch) -> prepare.PreparedBatch:
        config, templates, state = self._setting.config, self._setting.templates, self._setting.state
        batch = prepare.prepare(drawn.networks, config, templates, jax.device_count(), own_devices())
        jobs = []
        if state is not None and jax.process_count() == 1:
            jobs = [program.compiled for program in self._setting.ghn.to_compile(state, batch)]
        self._warm_up((network.program for network in drawn.networks), jobs)
        return batch

    def step(self, state, batch, images, labels, dropout_key):
        images = images.astype(self._setting.precision)
        xs, ys = ([jax.device_put(array, d) for d in jax.local_devices()] for array in (images, labels))
        smoothing, micro_batch = self._setting.label_smoothing, self._setting.images[0]
        return meta.meta_step(self._setting.ghn, state, batch, xs, ys, dropout_key, smoothing, micro_batch)


class _Fused:
    compiling = ""  # programs are compiled when a step first needs them

    def __init__(self, setting: Setting):
        self._setting = setting
        devices = jax.devices()
        self._fused = fused.make_fused_step(self._instructions, devices, setting.label_smoothing)
        self._memory_size = fused.memory_size(setting.images)
        self._memory = fused.make_memory(self._memory_size, devices)

    def _instructions(self, family: int, flat_size: int):
        return instruction_set(family, self._setting.images, self._setting.config.num_classes, flat_size)

    def prepare(self, drawn: MetaBatch) -> fused.FusedBatch:
        return fused.prepare(
            drawn.architectures,
            drawn.networks,
            self._setting.config,
            self._setting.templates,
            self._instructions,
            self._memory_size,
            jax.device_count(),
            own_devices(),
        )

    def step(self, state, batch, images, labels, dropout_key):
        xs, ys = replicate((images, labels), jax.devices())
        state, metrics, self._memory = fused.meta_step(
            self._setting.ghn, self._fused, state, batch, xs, ys, dropout_key, self._memory
        )
        return state, metrics


def own_devices() -> Sequence[int]:
    """Which of all devices are of this process."""
    return [i for i, device in enumerate(jax.devices()) if device.process_index == jax.process_index()]
