"""Takes one meta-training step over eight networks and saves its loss and gradient.

    python tests/training/one_meta_step.py FILE.npz DEVICES [HOST:PORT NUM_PROCESSES PROCESS_ID]

Each process has this many simulated devices; process 0 writes the file. It computes in float64: rounding in float32 may
move a value across the kink of a ReLU, where the gradient jumps by 1e-3 of its norm.
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.golden import golden_params
from ghn_jax.deepnets.architectures import Architecture, Genotype
from ghn_jax.deepnets.lowering import lower
from ghn_jax.models import config
from ghn_jax.models.templates import deepnets_templates
from ghn_jax.runtime import compilation
from ghn_jax.training import meta, pmapped, prepare, processes
from ghn_jax.training.recipes import recipe

CELL = (("sep_conv_3x3", 0), ("skip_connect", 1))
NETWORKS = tuple(
    Architecture(
        Genotype(CELL, (2,), CELL, (2,)),
        1,
        C_mult=1,
        stem_pool=True,
        preproc=False,
        fc_dim=fc_dim,
        fc_layers=2,
    )
    for fc_dim in (64, 64, 128, 64, 128, 128, 64, 64)
)


def main(path: str, devices: str, coordinator: str | None = None, *who: str) -> None:
    jax.config.update("jax_num_cpu_devices", int(devices))
    jax.config.update("jax_enable_x64", True)
    compilation.use_persistent_cache()
    num_processes, process_id = map(int, who) if who else (None, None)
    with processes.joined(coordinator, num_processes, process_id, wait=60):
        everywhere, here = jax.devices(), jax.local_devices()
        own = [i for i, device in enumerate(everywhere) if device.process_index == jax.process_index()]
        preset = dataclasses.replace(config.preset("ghn2"), hidden=8, channels=8)  # less to compile
        templates = deepnets_templates(preset, 32)
        used = tuple(f for f in templates if f.height == f.width == 1 or (f.height == 3 and f.inputs <= 4))
        networks = tuple(lower(arch) for arch in NETWORKS)
        batch = prepare.prepare(networks, preset, used, len(everywhere), own)
        optimizer = recipe("published").make_optimizer(num_steps=1000)
        ghn = meta.make_ghn_step(preset, used, optimizer, everywhere)
        params = jax.tree.map(np.float64, golden_params(preset))
        zero = jnp.zeros((), jnp.int32)
        state = meta.TrainState(params, optimizer.init(params), zero, zero)
        state = pmapped.replicate(state, everywhere)
        compile_left = [len(ghn.to_compile(state, batch)) if num_processes is None else -1]
        rng = np.random.default_rng(0)
        images = rng.standard_normal((2, 8, 32, 32, 3))  # two batches, which networks take in turn
        labels = rng.integers(0, 10, (2, 8)).astype(np.int32)
        state, metrics = meta.meta_step(
            ghn,
            state,
            batch,
            [jax.device_put(images, d) for d in here],
            [jax.device_put(labels, d) for d in here],
            jax.random.key(1),
        )
        compile_left += [len(ghn.to_compile(state, batch)) if num_processes is None else -1]
        if num_processes is None:
            deep = lower(dataclasses.replace(NETWORKS[0], n_cells=40))
            larger = prepare.prepare((deep, *networks[1:]), preset, used, len(everywhere), own)
            compile_left.append(len(ghn.to_compile(state, larger)))
        if jax.process_index() == 0:
            momentum = next(s.mu for s in jax.tree.leaves(state.opt_state, is_leaf=_has_mu) if _has_mu(s))
            gradient = np.concatenate([np.ravel(leaf[0]) for leaf in jax.tree.leaves(momentum)])
            loss, count = np.asarray(metrics.loss[0]), len(everywhere)
            np.savez(path, loss=loss, gradient=gradient, devices=count, compile_left=compile_left)


def _has_mu(node: object) -> bool:
    return hasattr(node, "mu")


if __name__ == "__main__":
    main(*sys.argv[1:])
