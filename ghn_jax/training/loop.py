"""The meta-training loop."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import jax_utils

from datasets import images
from datasets.images import ImageDataset, ImageSplit
from ghn_jax import compilation, config, sampling
from ghn_jax.evaluation.accuracy import BATCH_SIZE, predict_flat, top1
from ghn_jax.executor.warm_up import WarmUp
from ghn_jax.lowering import lower
from ghn_jax.templates import deepnets_templates
from ghn_jax.training import meta, prepare
from ghn_jax.training.checkpoint import RunCheckpoints
from ghn_jax.training.options import TrainOptions

_VAL_IMAGES = 10 * BATCH_SIZE


class NonFiniteLoss(ValueError):
    """Training gave up, since the loss stayed infinite or not a number."""


def train(options: TrainOptions) -> None:
    """Meta-trains a GHN, from the latest checkpoint in the work directory if there is one.

    Raises ValueError (nothing is written then) for options that do not fit each other, the data or the checkpoint,
    and NonFiniteLoss after too many skipped steps in a row.
    """
    options = options.resolve()
    assert options.workdir and options.meta_batch_size and options.batch_size and options.epochs
    compilation.use_persistent_cache(options.compilation_cache)
    counter = compilation.CompilationCounter()
    counter.register()
    devices = jax.local_devices()
    if options.meta_batch_size % len(devices):
        raise ValueError(
            f"`meta_batch_size` (={options.meta_batch_size}) does not divide over {len(devices)} devices: "
            f"choose a multiple of {len(devices)}"
        )

    # -- data and model --------------------------------------------------------------------------------------
    dataset = images.load(options.dataset, str(options.data_dir) if options.data_dir else None)
    if options.batch_size > len(dataset.train.images):
        raise ValueError(
            f"`batch_size` (={options.batch_size}) exceeds the {len(dataset.train.images)} training images"
        )
    steps_per_epoch = len(dataset.train.images) // options.batch_size
    horizon = options.epochs * steps_per_epoch
    last_step = min(horizon, options.steps or horizon)
    ghn_config = config.preset(options.preset, dataset.num_classes, dataset.image_size)
    templates = deepnets_templates(ghn_config, dataset.image_size)
    optimizer = meta.make_optimizer(
        meta.step_schedule(options.learning_rate, horizon), options.weight_decay, options.clip
    )
    ghn_step = meta.make_ghn_step(ghn_config, templates, optimizer, devices)
    init_key, image_key, dropout_key = jax.random.split(jax.random.key(options.seed), 3)
    state = meta.init_state(ghn_config, optimizer, init_key)

    # -- resume: checkpoint (options must agree), then the metrics up to it ------------------------------------
    checkpoints = RunCheckpoints(options.workdir)
    progress: dict[str, Any] = {"best_top1": -1.0}
    if checkpoints.latest_step() is not None:
        saved = checkpoints.meta()
        _check_same_run(options, saved["options"])
        state, progress = checkpoints.restore(state), saved["progress"]
        print(f"resuming {options.workdir} after step {int(state.step)}", flush=True)
    first_step = int(state.step)
    metrics = _MetricsFile(options.workdir / "metrics.jsonl", first_step)
    state = jax_utils.replicate(state, devices)

    def save() -> None:
        single = jax.device_get(jax_utils.unreplicate(state))
        info = _info(options, dataset, int(single.step), progress)
        meta_data = {"options": options.identity(), "config": dataclasses.asdict(ghn_config), "info": info}
        if options.val_archs:
            info["val_top1"] = _validate(ghn_config, single.params, dataset, options)
            metrics.write(step=int(single.step), val_top1=info["val_top1"])
            if info["val_top1"] > progress["best_top1"]:
                progress["best_top1"] = info["val_top1"]
                checkpoints.save(single, meta_data | {"progress": progress}, best=True)
        checkpoints.save(single, meta_data | {"progress": progress})

    # -- the loop --------------------------------------------------------------------------------------------
    train_images, train_labels = jnp.asarray(dataset.train.images), jnp.asarray(dataset.train.labels)
    next_images = _image_stream(dataset, options.batch_size)

    warm_up = WarmUp((options.batch_size, dataset.image_size, dataset.image_size, 3), devices)

    def make_batch(step: int) -> prepare.PreparedBatch:
        assert options.meta_batch_size
        drawn = sampling.meta_batch(
            options.seed, step, options.meta_batch_size, dataset.num_classes, dataset.image_size
        )
        warm_up(network.program for network in drawn.networks)
        return prepare.prepare(drawn.networks, ghn_config, templates, len(devices))

    print(
        f"{options.preset} on {options.dataset}: steps {first_step} to {last_step}, {options.meta_batch_size} "
        f"architectures x {options.batch_size} images a step, {len(devices)} device(s) -> {options.workdir}",
        flush=True,
    )
    clock = _Clock(first_step, last_step)
    with contextlib.closing(prepare.prefetch(make_batch, first_step, last_step)) as batches:
        for step, batch in enumerate(batches, start=first_step):
            x, y = next_images(image_key, step, train_images, train_labels)
            state, measured = meta.meta_step(
                ghn_step,
                state,
                batch,
                [jax.device_put(x, d) for d in devices],
                [jax.device_put(y, d) for d in devices],
                jax.random.fold_in(dropout_key, step),
            )
            loss, accuracy, norm = (float(value[0]) for value in measured)
            clock.tick(step + 1)
            metrics.write(
                step=step + 1,
                loss=loss,
                top1=accuracy,
                gradient_norm=norm,
                architectures=(step + 1) * options.meta_batch_size,
                seconds=round(clock.seconds, 3),
                compilations=counter.count,
                compilation_seconds=round(counter.seconds, 3),
                skipped=int(state.skipped[0]),
            )
            if int(state.skipped[0]) >= options.max_skipped:
                raise NonFiniteLoss(
                    f"`loss` (={loss}) or its gradient was not finite for {options.max_skipped} steps in a row, up to "
                    f"step {step + 1}: lower --learning_rate, or change --seed; checkpoints are as before"
                )
            if (step + 1) % options.log_every == 0 or step + 1 == last_step:
                rate = clock.rate * options.meta_batch_size
                print(
                    f"step {step + 1}/{last_step}  loss {loss:.3f}  top1 {accuracy:.1f}%  {rate:.2f} architectures/s  "
                    f"{counter.count} compilations  ETA {clock.eta}",
                    flush=True,
                )
            if (step + 1) % options.checkpoint_every == 0 or step + 1 == last_step:
                save()
    best = f", best val top-1 {progress['best_top1']:.1f}%" if options.val_archs else ""
    print(f"done: {last_step} steps{best}, in {options.workdir}", flush=True)


def _check_same_run(options: TrainOptions, saved: dict[str, Any]) -> None:
    now = options.identity()
    differences = [f"--{k} was {saved.get(k)}, is {v}" for k, v in now.items() if saved.get(k) != v]
    if differences:
        raise ValueError(
            f"`workdir` (={str(options.workdir)!r}) holds a run with other options ({'; '.join(differences)}): "
            "use those, or another --workdir"
        )


def _info(
    options: TrainOptions, dataset: ImageDataset, step: int, progress: dict[str, Any]
) -> dict[str, Any]:
    """How weights were made, to be kept beside them."""
    return options.identity() | {"steps": step, "architectures": step * (options.meta_batch_size or 0)}


def _image_stream(dataset: ImageDataset, batch_size: int):
    """The jitted function (key, step, images, labels) -> batch."""
    return jax.jit(
        functools.partial(
            images.train_batch,
            batch_size=batch_size,
            mean=dataset.mean,
            std=dataset.std,
            pad=dataset.pad,
            flip=dataset.flip,
        )
    )


def _validate(
    ghn_config: config.GHNConfig, params: Any, dataset: ImageDataset, options: TrainOptions
) -> float:
    """Mean top-1 of the first architectures of the split val on the first validation images."""
    held_out = ImageSplit(dataset.val.images[:_VAL_IMAGES], dataset.val.labels[:_VAL_IMAGES])
    templates = deepnets_templates(ghn_config, dataset.image_size)
    accuracies = []
    for index in range(options.val_archs):
        arch = sampling.sample("val", index, image_size=dataset.image_size)
        network = lower(arch, dataset.num_classes, dataset.image_size)
        accuracies.append(
            top1(network, predict_flat(ghn_config, params, network, templates), dataset, held_out)
        )
    return float(np.mean(accuracies))


class _Clock:
    """Rate and time left, the first steps (which compile) weighing less and less."""

    def __init__(self, step: int, last: int):
        self._start = self._then = time.monotonic()
        self._step, self._last, self._per_step = step, last, 0.0

    def tick(self, step: int) -> None:
        """Notes that a step is done."""
        now = time.monotonic()
        latest = now - self._then
        self._per_step = 0.9 * self._per_step + 0.1 * latest if self._per_step else latest
        self._then, self._step = now, step

    @property
    def seconds(self) -> float:
        """Since the loop began."""
        return self._then - self._start

    @property
    def rate(self) -> float:
        """Steps per second, lately."""
        return 1.0 / max(self._per_step, 1e-9)

    @property
    def eta(self) -> str:
        """Time left, as h:mm:ss."""
        left = int((self._last - self._step) * self._per_step)
        return f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"


class _MetricsFile:
    """JSON lines, one a step; what an interrupted run wrote after its last checkpoint is dropped."""

    def __init__(self, path: pathlib.Path, step: int):
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= step]
        partial = path.with_name(path.name + ".part")
        partial.write_text("".join(f"{line}\n" for line in kept))
        os.replace(partial, path)
        self._file = path.open("a")

    def write(self, **values: Any) -> None:
        """Appends a line."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()


def _lines(path: pathlib.Path) -> list[str]:
    """The whole lines of a file, if it exists."""
    if not path.exists():
        return []
    return [line for line in path.read_text().split("\n")[:-1] if line]
