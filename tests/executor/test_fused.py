"""The fused executor against blocks, alone and in a step of meta-training, and what it can run.

    python tests/test_fused.py FILE.npz DEVICES

takes such a step on this many simulated devices, and saves its loss and gradient.
"""

import dataclasses
import functools
import pathlib
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands_in_forks import Forks

from benchmarks.executor_equality import make_case
from ghn_jax.deepnets import families, sampling
from ghn_jax.deepnets.architectures import Architecture, Genotype
from ghn_jax.deepnets.families import FAMILIES, family_of
from ghn_jax.deepnets.lowering import lower
from ghn_jax.executor import fused, instruction_set, lanes, run, table
from ghn_jax.executor.layouts import flatten
from ghn_jax.executor.simplify import simplify
from ghn_jax.models import config
from ghn_jax.models.templates import deepnets_templates
from ghn_jax.training import fused as fused_training
from ghn_jax.training import meta, pmapped, prepare
from ghn_jax.training.recipes import recipe

IMAGES = (4, 32, 32, 3)
CELL = (
    ("conv_1x1", 0),
    ("skip_connect", 1),
    ("sep_conv_3x3", 0),
    ("none", 1),
    ("cse", 2),
    ("skip_connect", 3),
)
PARTLY_DEAD = (("none", 0), ("none", 1), ("conv_1x1", 0), ("skip_connect", 2))
NETWORKS = (
    Architecture(
        Genotype(CELL, (2, 3, 4), CELL, (2, 3, 4)), 3, C_mult=1, stem_pool=True, fc_layers=2, fc_dim=64
    ),
    Architecture(
        Genotype(CELL, (3, 4), CELL, (3, 4)), 3, C_mult=1, stem_pool=True, norm=False, glob_avg=False
    ),
    Architecture(Genotype(CELL[:4], (2, 3), PARTLY_DEAD, (2, 3)), 4, C_mult=1, stem_pool=True),
)


@pytest.fixture(scope="module")
def instructions() -> instruction_set.InstructionSet:
    """Enough for NETWORKS alone: whole families take long to compile."""
    return instruction_set.collect([simplify(lower(arch).program, IMAGES) for arch in NETWORKS], IMAGES, 10)


@pytest.fixture(scope="module")
def interpreter(instructions: instruction_set.InstructionSet):
    """The compiled function (table, flat, images, labels, key) -> outcome, for all networks; in float64."""
    size = max(assembled(arch, instructions).memory_size for arch in NETWORKS)
    function = jax.jit(functools.partial(fused.loss_and_gradient, instructions), donate_argnums=0)
    with jax.enable_x64(True):
        memory = jnp.full(size, jnp.nan, float)  # what is in the memory must not matter

    def call(*operands):
        nonlocal memory
        outcome, memory = function(memory, *operands)
        return outcome

    return call


def assembled(arch: Architecture, instructions: instruction_set.InstructionSet) -> table.Assembled:
    return table.assemble(lower(arch).program, instructions)


def operands(arch: Architecture):
    """Flat vector, images, labels, key."""
    case = make_case(arch, IMAGES[0], np.random.default_rng(0))
    flat = flatten(case.lowered.parameters, case.tensors, 1 << 22)
    return (
        jnp.asarray(flat, float),
        jnp.asarray(case.images, float),
        jnp.asarray(case.labels),
        jax.random.key(1),
    )


@pytest.mark.parametrize("number", range(len(NETWORKS)))
def test_loss_and_gradient_equal_those_of_blocks(number: int, instructions, interpreter):
    arch = NETWORKS[number]
    with jax.enable_x64(True):
        ours = interpreter(assembled(arch, instructions).table, *operands(arch))
        theirs = run.loss_and_gradient(lower(arch).program, *operands(arch))
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=1e-9)
    np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-9)
    np.testing.assert_allclose(ours.gradient, theirs.gradient, atol=1e-9 * np.abs(theirs.gradient).max())


def test_an_empty_table_has_no_loss_and_no_gradient(interpreter):
    with jax.enable_x64(True):
        outcome = interpreter(table.empty_table(), *operands(NETWORKS[0]))
    assert float(outcome.loss) == 0.0
    assert not np.any(outcome.gradient)


def test_families_cover_the_training_distribution():
    for step in range(40):
        for arch in sampling.meta_batch(1, step, 8).architectures:
            assembled(arch, families.instruction_set(family_of(arch), IMAGES))


def test_a_training_needs_few_programs():
    assert len(FAMILIES) * len(instruction_set.FLAT_SIZES) <= 24


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (sampling.named("resnet50").program, "Convolution.*use the executor blocks"),
        (lower(Architecture(NETWORKS[0].genotype, 3, C=64)).program, "use the executor blocks"),
        (lower(Architecture(NETWORKS[0].genotype, 100)).program, "more than 2,047"),
    ],
)
def test_what_is_in_no_family_is_an_error(program, message: str):
    small = families.instruction_set(32, IMAGES)
    with pytest.raises(ValueError, match=message):
        table.assemble(program, small)


# -- a step of meta-training -------------------------------------------------------------------------------------

TINY = Genotype((("conv_1x1", 0), ("skip_connect", 1)), (2,), (("conv_1x1", 0), ("skip_connect", 1)), (2,))
BASE = Architecture(TINY, 1, C=32, C_mult=1, stem_pool=True, norm=False, preproc=False, fc_layers=2)
META_BATCH = (
    dataclasses.replace(BASE, fc_dim=64),
    dataclasses.replace(BASE, C=64, fc_layers=1),
    dataclasses.replace(BASE, fc_dim=128),
    dataclasses.replace(BASE, fc_dim=64),
)
"""Of two families, so that on more than one device one is idle."""


def tiny_set(family: int, flat_size: int) -> instruction_set.InstructionSet:
    steps = [simplify(lower(arch).program, IMAGES) for arch in META_BATCH if family_of(arch) == family]
    return instruction_set.collect(steps, IMAGES, 10, flat_size)


class StepOutcome(NamedTuple):
    """Loss, accuracy, and the optimiser's momentum, which is a tenth of the gradient."""

    loss: np.ndarray
    top1: np.ndarray
    gradient: np.ndarray


class Setting:
    """A GHN, its optimiser and a batch of images on some devices."""

    def __init__(self, devices, ghn_config: config.GHNConfig | None = None, recipe_name: str = "published"):
        self.devices = devices
        self.config = ghn_config or config.preset("mlp")
        forms = deepnets_templates(self.config, 32)
        self.templates = tuple(form for form in forms if form.height <= 3 >= form.width)  # fewer to compile
        optimizer = recipe(recipe_name).make_optimizer(num_steps=1000)
        self.ghn = meta.make_ghn_step(self.config, self.templates, optimizer, devices, recipe(recipe_name))
        self.step = fused_training.make_fused_step(tiny_set, devices)
        self.state = pmapped.replicate(meta.init_state(self.config, optimizer, jax.random.key(0)), devices)
        rng = np.random.default_rng(0)
        groups = 2  # which networks take in turn
        images = rng.standard_normal((groups, *IMAGES), np.float32)
        labels = rng.integers(0, 10, (groups, IMAGES[0]))
        self.images, self.labels = pmapped.replicate((images, labels), devices)

    def prepare(self, memory_size: int) -> fused_training.FusedBatch:
        networks = [lower(arch) for arch in META_BATCH]
        return fused_training.prepare(
            META_BATCH, networks, self.config, self.templates, tiny_set, memory_size, len(self.devices)
        )

    def fused_step(self) -> StepOutcome:
        size = fused_training.memory_size(IMAGES)
        state, metrics, _ = fused_training.meta_step(
            self.ghn,
            self.step,
            self.state,
            self.prepare(size),
            self.images,
            self.labels,
            jax.random.key(1),
            fused_training.make_memory(size, self.devices),
        )
        return outcome_of(state, metrics)

    def blocks_step(self) -> StepOutcome:
        networks = tuple(lower(arch) for arch in META_BATCH)
        batch = prepare.prepare(networks, self.config, self.templates, 1)
        images, labels = [self.images[0]], [self.labels[0]]
        return outcome_of(*meta.meta_step(self.ghn, self.state, batch, images, labels, jax.random.key(1)))


def outcome_of(state: meta.TrainState, metrics: meta.Metrics) -> StepOutcome:
    moments = next(s for s in jax.tree.leaves(state.opt_state, is_leaf=has_mu) if has_mu(s))
    gradient = np.concatenate([np.ravel(leaf[0]) for leaf in jax.tree.leaves(moments.mu)])
    return StepOutcome(np.asarray(metrics.loss[0]), np.asarray(metrics.top1[0]), gradient)


def has_mu(node: object) -> bool:
    return hasattr(node, "mu")


def assert_same(one: StepOutcome, other: StepOutcome) -> None:
    assert one.loss == pytest.approx(other.loss, rel=1e-5)
    assert one.top1 == pytest.approx(other.top1)
    assert np.linalg.norm(one.gradient - other.gradient) < 1e-5 * np.linalg.norm(other.gradient)


@pytest.fixture(scope="module")
def one_device() -> Setting:
    return Setting(jax.local_devices()[:1])


@pytest.fixture(scope="module")
def step_on_one_device(one_device: Setting) -> StepOutcome:
    return one_device.fused_step()


def test_a_step_equals_that_of_blocks(one_device: Setting, step_on_one_device):
    assert_same(step_on_one_device, one_device.blocks_step())


def test_a_step_of_ghn3_equals_that_of_blocks(one_device: Setting):
    """With its penalty on the norms of predicted tensors."""
    setting = Setting(one_device.devices, config.ghn3(hidden=16, layers=1, heads=8), "ghn3")
    setting.step = one_device.step  # compiled already
    assert_same(setting.fused_step(), setting.blocks_step())


def test_networks_at_a_time_change_nothing(one_device: Setting, monkeypatch: pytest.MonkeyPatch):
    together = one_device.blocks_step()
    monkeypatch.setattr(lanes, "on_cpu", lambda: False)
    for lanes_of_a_gpu in (1, lanes.ON_ACCELERATORS):
        monkeypatch.setattr(lanes, "ON_ACCELERATORS", lanes_of_a_gpu)
        for one, other in zip(together, one_device.blocks_step(), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_step_does_not_depend_on_the_devices(forks: Forks, step_on_one_device, tmp_path: pathlib.Path):
    path = tmp_path / "step.npz"
    done = forks.run("python", __file__, path, "2")
    assert done.returncode == 0, done.stderr
    assert_same(StepOutcome(**np.load(path)), step_on_one_device)


def test_a_network_that_does_not_fit_is_an_error(one_device: Setting):
    with pytest.raises(ValueError, match=r"`memory_size` \(=1000\).*lower the batch size"):
        one_device.prepare(1000)


def main(path: str, devices: str) -> None:
    jax.config.update("jax_num_cpu_devices", int(devices))
    step = Setting(jax.devices()).fused_step()
    np.savez(path, loss=step.loss, top1=step.top1, gradient=step.gradient)


if __name__ == "__main__":
    main(*sys.argv[1:])
