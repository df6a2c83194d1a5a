"""The meta-training loop."""

import contextlib
import dataclasses
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ghn_jax.deepnets import sampling
from ghn_jax.deepnets.lowering import lower
from ghn_jax.evaluation.accuracy import BATCH_SIZE, network_accuracy, predict_flat
from ghn_jax.executor import lanes
from ghn_jax.images.damage import DamageList
from ghn_jax.images.loading import load
from ghn_jax.images.resident import ImageDataset
from ghn_jax.images.sources import StreamedDataset
from ghn_jax.models import config
from ghn_jax.models.templates import deepnets_templates
from ghn_jax.runtime import compilation, memory
from ghn_jax.training import executors, feed, meta, prepare, processes
from ghn_jax.training.checkpoint import RunCheckpoints
from ghn_jax.training.options import TrainOptions
from ghn_jax.training.pmapped import replicate, unreplicate
from ghn_jax.training.progress import Clock, MetricsFile

_VAL_BATCHES = 10
"""Batches of held-out images that judge a checkpoint."""


class NonFiniteLoss(ValueError):
    """Training gave up, since the loss stayed infinite or not a number."""


def train(options: TrainOptions) -> None:
    """Meta-trains a GHN, from the latest checkpoint in the work directory if there is one.

    Raises ValueError (nothing is written then) for options that do not fit each other, the data or the checkpoint,
    and NonFiniteLoss after too many skipped steps in a row.
    """
    options = options.resolve()
    if options.executor != "fused":
        lanes.share_cores()
    with processes.joined(options.coordinator, options.num_processes, options.process_id):
        _train(options)


def _train(options: TrainOptions) -> None:
    assert options.meta_batch_size
    compilation.use_persistent_cache(options.compilation_cache)
    counter = compilation.CompilationCounter()
    counter.register()
    num_devices = jax.device_count()
    leads = jax.process_index() == 0
    prepare.check_divides(options.meta_batch_size, num_devices)

    def say(text: str) -> None:
        if leads:
            print(text, flush=True)

    # -- data and model --------------------------------------------------------------------------------------
    dataset = load(options.dataset, options.data_dir)
    unvalidated = options.val_archs is None and len(dataset.val) < BATCH_SIZE
    options = options.fitted(len(dataset.train), len(dataset.val))
    assert (
        options.workdir and options.meta_batch_size and options.batch_size and options.epochs and options.clip
    )
    steps_per_epoch = len(dataset.train) // options.batch_size
    horizon = options.epochs * steps_per_epoch
    last_step = min(horizon, options.steps or horizon)
    ghn_config = config.preset(options.preset, dataset.num_classes, dataset.image_size)
    templates = deepnets_templates(ghn_config, dataset.image_size)
    recipe = options.full_recipe()
    optimizer = recipe.make_optimizer(last_step if recipe.schedule == "cosine" else horizon)
    size = (options.micro_batch_size or options.batch_size, dataset.image_size, dataset.image_size, 3)
    ghn_step = meta.make_ghn_step(ghn_config, templates, optimizer, jax.devices(), recipe)
    setting = executors.Setting(
        ghn_config, templates, ghn_step, size, options.label_smoothing or 0.0, options.precision
    )
    executor = executors.make_executor(options.executor, setting, options.batch_size)
    init_key, image_key, dropout_key = jax.random.split(jax.random.key(options.seed), 3)
    state = meta.init_state(ghn_config, optimizer, init_key, recipe)

    # -- resume: checkpoint (options must agree), then the metrics up to it ------------------------------------
    checkpoints = RunCheckpoints(options.workdir)
    progress: dict[str, Any] = {"best_top1": -1.0, "images": {}}
    if checkpoints.latest_step() is not None:
        saved = checkpoints.meta()
        _check_same_run(options, saved["options"])
        state, progress = checkpoints.restore(state), progress | saved["progress"]
        if options.change_options:  # perhaps those of the images
            progress["images"] = {}
        say(f"resuming {options.workdir} after step {int(state.step)}")
    first_step = int(state.step)
    next_images = feed.open_feed(
        dataset,
        options.batch_size,
        image_key,
        options.seed,
        first_step,
        progress["images"],
        options.num_workers,
        DamageList(options.workdir / "damaged_images.txt" if leads else None),
    )
    metrics = MetricsFile(options.workdir / "metrics.jsonl" if leads else None, first_step)
    state = replicate(state, jax.devices())

    def save() -> None:
        single = unreplicate(state)
        info = _info(options, int(single.step))
        meta_data = {"options": options.identity(), "config": dataclasses.asdict(ghn_config), "info": info}
        if options.val_archs:
            val_top1 = _validate(ghn_config, single.best_params, dataset, options)
            # rounding may differ between processes, which must agree on what is best
            info["val_top1"] = float(multihost_utils.broadcast_one_to_all(np.float32(val_top1)))
            metrics.write(step=int(single.step), val_top1=info["val_top1"])
            if info["val_top1"] > progress["best_top1"]:
                progress["best_top1"] = info["val_top1"]
                checkpoints.save(single, meta_data | {"progress": progress}, best=True)
        checkpoints.save(single, meta_data | {"progress": progress})

    # -- the loop --------------------------------------------------------------------------------------------
    def draw(step: int) -> sampling.MetaBatch:
        assert options.meta_batch_size
        return sampling.meta_batch(
            options.seed, step, options.meta_batch_size, dataset.num_classes, dataset.image_size
        )

    say(
        f"{options.preset} on {options.dataset}: steps {first_step} to {last_step}, {options.meta_batch_size} "
        f"architectures x {options.batch_size} images a step, {num_devices} device(s) -> {options.workdir}"
    )
    for note in dataset.notes:
        say(f"note: {note}")
    if unvalidated:
        say(
            f"note: checkpoints are not validated, which takes {BATCH_SIZE} held-out images of {len(dataset.val)}"
        )
    clock = Clock(first_step, last_step)
    freed_memory = memory.FreedMemory()
    with (
        contextlib.closing(metrics),
        contextlib.closing(next_images),
        contextlib.closing(
            prepare.prefetch(lambda step: executor.prepare(draw(step)), first_step, last_step)
        ) as batches,
    ):
        for step, batch in enumerate(batches, start=first_step):
            x, y = next_images(step)
            try:
                key = jax.random.fold_in(dropout_key, step)
                state, measured = executor.step(state, batch, x, y, key)
            except meta.OutOfMemory as error:
                index = draw(step).indices[error.place]
                raise ValueError(
                    f"{error} (architecture {index} of the split train, step {step + 1})"
                ) from error
            loss, accuracy, norm = (float(value[0]) for value in measured)
            clock.tick(step + 1)
            freed_memory.release_if_grown()
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
                damaged_images=next_images.damaged,
            )
            if int(state.skipped[0]) >= options.max_skipped:
                raise NonFiniteLoss(
                    f"`loss` (={loss}) or its gradient was not finite for {options.max_skipped} steps in a row, up to "
                    f"step {step + 1}: lower --learning_rate, or change --seed; checkpoints are as before"
                )
            if (step + 1) % options.log_every == 0 or step + 1 == last_step:
                rate = clock.rate * options.meta_batch_size
                say(
                    f"step {step + 1}/{last_step}  loss {loss:.3f}  top1 {accuracy:.1f}%  {rate:.2f} architectures/s  "
                    f"{counter.count} compilations  ETA {clock.eta}"
                )
            if (step + 1) % options.checkpoint_every == 0 or step + 1 == last_step:
                save()
    best = f", best val top-1 {progress['best_top1']:.1f}%" if options.val_archs else ""
    damaged = (
        f", {next_images.damaged} damaged images replaced (see damaged_images.txt)"
        if next_images.damaged
        else ""
    )
    say(f"done: {last_step} steps{best}{damaged}, in {options.workdir}")


def _check_same_run(options: TrainOptions, saved: dict[str, Any]) -> None:
    now = options.identity()
    saved = {"recipe": "published"} | saved  # before there were others
    before = {name: saved.get(name, getattr(TrainOptions, name)) for name in now}  # an option may be new
    differences = [f"--{k} was {before[k]}, is {v}" for k, v in now.items() if before[k] != v]
    if differences and not options.change_options:
        raise ValueError(
            f"`workdir` (={str(options.workdir)!r}) holds a run with other options ({'; '.join(differences)}): "
            "use those, another --workdir, or --change_options=True"
        )


def _info(options: TrainOptions, step: int) -> dict[str, Any]:
    """How weights were made, to be kept beside them."""
    return options.identity() | {"steps": step, "architectures": step * (options.meta_batch_size or 0)}


def _validate(
    ghn_config: config.GHNConfig, params: Any, dataset: ImageDataset | StreamedDataset, options: TrainOptions
) -> float:
    """Mean top-1 of the first architectures of the split val on the first held-out images."""
    templates = deepnets_templates(ghn_config, dataset.image_size)

    def top1(index: int) -> float:
        arch = sampling.sample("val", index, image_size=dataset.image_size)
        network = lower(arch, dataset.num_classes, dataset.image_size)
        flat = predict_flat(ghn_config, params, network, templates)
        return network_accuracy(network, flat, dataset, "val", _VAL_BATCHES, options.num_workers).top1

    return float(np.mean(list(lanes.run_in_lanes(top1, options.val_archs or 0))))
