"""The meta-training loop."""

import contextlib
import dataclasses
import shlex
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from ghn_jax.deepnets import sampling
from ghn_jax.deepnets.lowering import lower
from ghn_jax.deepnets.stored import open_split
from ghn_jax.evaluation.accuracy import BATCH_SIZE, NotFinite, network_accuracy, predict_flat
from ghn_jax.executor import lanes
from ghn_jax.images.damage import DamageList
from ghn_jax.images.loading import load
from ghn_jax.images.resident import ImageDataset
from ghn_jax.images.sources import StreamedDataset
from ghn_jax.models import config
from ghn_jax.models.templates import deepnets_templates
from ghn_jax.pretrained import TrainedGHN
from ghn_jax.pretrained import load as load_ghn
from ghn_jax.runtime import compilation, devices, memory, outputs, signals
from ghn_jax.runtime.errors import LARGEST, called
from ghn_jax.runtime.status import Status
from ghn_jax.training import executors, feed, meta, prepare, processes, same_run
from ghn_jax.training.checkpoint import RunCheckpoints
from ghn_jax.training.options import TrainOptions
from ghn_jax.training.pmapped import replicate, unreplicate
from ghn_jax.training.progress import Clock
from ghn_jax.training.workdir import MetricsFile, locked

_VAL_IMAGES = 10 * BATCH_SIZE
"""Held-out images that judge a checkpoint."""


class NonFiniteLoss(ValueError):
    """Training gave up, since the loss stayed infinite or not a number."""


def train(options: TrainOptions) -> None:
    """Meta-trains a GHN, from the latest checkpoint in the work directory if there is one.

    Raises ValueError (nothing is written then) for options that do not fit each other, the data or the checkpoint,
    NonFiniteLoss after too many skipped steps in a row, OSError where a file cannot be written, and
    signals.Interrupted, with everything saved, when asked to end.
    """
    options = options.resolve()
    if options.executor != "fused":
        lanes.share_cores()
    members = processes.joined(options.coordinator, options.num_processes, options.process_id)
    with members, contextlib.ExitStack() as owned:
        devices.check()
        compilation.use_persistent_cache(options.compilation_cache)
        shown = owned.enter_context(Status(quiet=jax.process_index() > 0))
        shown.doing(f"loading {options.dataset}")
        _train(_plan(options), owned, shown)


class _Plan(NamedTuple):
    """What is known before anything is written; `unvalidated` for want of held-out images.

    `init` is the GHN that a fresh run starts from, if not as its recipe says.
    """

    options: TrainOptions
    dataset: ImageDataset | StreamedDataset
    config: config.GHNConfig
    horizon: int
    last_step: int
    unvalidated: bool
    init: TrainedGHN | None


def _plan(options: TrainOptions) -> _Plan:
    assert options.meta_batch_size and options.workdir
    prepare.check_divides(options.meta_batch_size, jax.device_count())
    if jax.process_index() == 0:
        outputs.check_directory("workdir", options.workdir)
    dataset = load(options.dataset, options.data_dir, options.image_size, options.num_workers)
    fitted = options.fitted(len(dataset.train), len(dataset.val), dataset.image_size)
    assert fitted.batch_size and fitted.epochs
    horizon = fitted.epochs * (len(dataset.train) // fitted.batch_size)
    if horizon > LARGEST:
        raise ValueError(
            f"`epochs` (={options.epochs}) are {horizon} steps: at most {LARGEST} can be counted"
        )
    ghn_config = config.preset(options.preset, dataset.num_classes, dataset.image_size)
    last_step = min(horizon, options.steps or horizon)
    unvalidated = options.val_archs is None and not fitted.val_archs
    init = None
    if options.init is not None and RunCheckpoints(options.workdir).latest_step() is None:
        with called("ckpt", "init"):
            init = load_ghn(options.init)
        changes = same_run.ghn_changes(dataclasses.asdict(init.config), ghn_config)
        if changes:
            raise ValueError(
                f"`init` (={options.init!r}) is another GHN than --preset={options.preset} on {options.dataset} takes "
                f"({'; '.join(changes)}): give one of the same"
            )
    return _Plan(fitted, dataset, ghn_config, horizon, last_step, unvalidated, init)


def _train(plan: _Plan, owned: contextlib.ExitStack, shown: Status) -> None:
    options, dataset, ghn_config, horizon, last_step, unvalidated, init = plan
    assert options.workdir and options.meta_batch_size and options.batch_size and options.draw
    leads, say, counter = jax.process_index() == 0, shown.say, shown.counter

    # -- model -----------------------------------------------------------------------------------------------
    templates = deepnets_templates(ghn_config, dataset.image_size)
    recipe, kind_of_networks = options.full_recipe(), sampling.DRAWS[options.draw]
    schedule_steps = last_step if recipe.schedule == "cosine" else horizon
    optimizer = recipe.make_optimizer(schedule_steps)
    stored = None
    if options.deepnets_dir is not None:
        with called("path", "deepnets_dir"):
            stored = open_split(options.deepnets_dir, "train", dataset.image_size)
    size = (options.micro_batch_size or options.batch_size, dataset.image_size, dataset.image_size, 3)
    ghn_step = meta.make_ghn_step(ghn_config, templates, optimizer, jax.devices(), recipe)
    shown.doing("making the weights of the GHN")
    init_key, image_key, dropout_key = jax.random.split(jax.random.key(options.seed), 3)
    state = meta.init_state(ghn_config, optimizer, init_key, recipe, init and init.params)
    smoothing, shapes = options.label_smoothing or 0.0, jax.tree.map(_replicated, state)
    setting = executors.Setting(ghn_config, templates, ghn_step, size, smoothing, options.precision, shapes)
    executor = executors.make_executor(options.executor, setting, options.batch_size)

    # -- resume: checkpoint (options must agree), then the metrics up to it ------------------------------------
    if leads:
        owned.enter_context(locked(options.workdir))
    checkpoints = RunCheckpoints(options.workdir)
    shown.doing("reading checkpoints")
    for remark in checkpoints.heal() if leads else ():
        say(f"note: {remark}")
    processes.wait_for_others("healed")
    progress: dict[str, Any] = {"best_top1": -1.0, "images": {}, "to_validate": False}
    mark, history = None, init and init.info
    fresh = checkpoints.latest_step() is None
    if not fresh:
        saved = checkpoints.meta()
        for remark in same_run.check(options, ghn_config, dataset.identity, schedule_steps, saved):
            say(f"note: {remark}")
        state, progress, mark = checkpoints.restore(state), progress | saved["progress"], saved["metrics"]
        history = saved["info"].get("before")
        if options.change_options:  # perhaps those of the images
            progress["images"] = {}
        if not checkpoints.has_best():  # or it was set aside
            progress["best_top1"] = -1.0
        say(f"resuming {options.workdir} after step {int(state.step)}")
    processes.wait_for_others("resumed")
    first_step = int(state.step)
    metrics = MetricsFile(options.workdir / "metrics.jsonl" if leads else None, mark)
    groups = 1  # batches of images a step
    if recipe.own_images:
        groups = min(options.meta_batch_size, len(dataset.train) // options.batch_size)
    next_images = feed.open_feed(
        dataset,
        options.batch_size * groups,
        image_key,
        options.seed,
        first_step,
        progress["images"],
        options.num_workers,
        DamageList(options.workdir / "damaged_images.txt" if leads else None),
    )
    state = replicate(state, jax.devices())

    def save(validate: bool) -> None:
        """Writes a checkpoint, unless the last step was skipped: its loss says that something may be wrong."""
        single = unreplicate(state)
        step = int(single.step)
        if int(single.skipped):
            say(f"step {step} was skipped: no checkpoint")
            return
        info = options.identity() | {"steps": step, "architectures": step * (options.meta_batch_size or 0)}
        info |= {"classes": list(dataset.classes)} if isinstance(dataset, StreamedDataset) else {}
        info |= {"before": history} if history else {}
        best = False
        if validate:
            shown.doing(f"validating after step {step}")
            try:
                val_top1 = _validate(ghn_config, single.best_params, dataset, options)
            except NotFinite as error:  # written as null, and never the best
                say(f"note: validation after step {step}: {error}")
                val_top1 = float("nan")
            # rounding may differ between processes, which must agree on what is best
            info["val_top1"] = float(multihost_utils.broadcast_one_to_all(np.float32(val_top1)))
            metrics.write(step=step, val_top1=info["val_top1"])
            best = info["val_top1"] > progress["best_top1"]
            progress["best_top1"] = info["val_top1"] if best else progress["best_top1"]
            shown.doing(step_and_rest)
        if leads:
            meta_data = {
                "options": options.identity(),
                "config": dataclasses.asdict(ghn_config),
                "info": info,
                "recipe": dataclasses.asdict(recipe),
                "draw": kind_of_networks.changes(),
                "data": dataset.identity.to_dict(),
                "schedule_steps": schedule_steps,
            }
            meta_data |= {"progress": progress, "metrics": metrics.mark()}
            checkpoints.save(single, meta_data, best)

    # -- the loop --------------------------------------------------------------------------------------------
    def draw(step: int) -> sampling.MetaBatch:
        assert options.meta_batch_size and options.draw
        size, seed = options.meta_batch_size, options.seed
        return sampling.meta_batch(
            seed, step, size, dataset.num_classes, dataset.image_size, stored, options.draw
        )

    say(
        f"{options.preset} on {options.dataset} ({len(dataset.train):,} images of {dataset.num_classes} classes at "
        f"{dataset.image_size} pixels): steps {first_step} to {last_step}, {options.meta_batch_size} architectures x "
        f"{options.batch_size} images a step, {jax.device_count()} device(s) ({jax.devices()[0].device_kind}) -> "
        f"{options.workdir}"
    )
    for note in dataset.notes:
        say(f"note: {note}")
    if unvalidated:
        say(
            f"note: checkpoints are not validated, which takes {BATCH_SIZE} held-out images of {len(dataset.val)}"
        )
    clock, programs = Clock(first_step, last_step), counter.programs

    def step_and_rest() -> str:
        return clock.describe(executor.compiling)

    shown.doing(step_and_rest)
    freed_memory = memory.FreedMemory()
    with (
        contextlib.closing(metrics),
        contextlib.closing(next_images),
        signals.noted("saving when this step is done; once more ends at once") as request,
        contextlib.closing(
            prepare.prefetch(lambda step: executor.prepare(draw(step)), first_step, last_step)
        ) as batches,
    ):
        if fresh:  # so that there never are metrics without a checkpoint
            save(validate=False)
        elif progress["to_validate"]:
            progress["to_validate"] = False
            save(validate=True)
        for step, batch in enumerate(batches, start=first_step):
            clock.begin()
            x, y = (part.reshape(groups, -1, *part.shape[1:]) for part in next_images(step))
            try:
                key = jax.random.fold_in(dropout_key, step)
                state, measured = executor.step(state, batch, x, y, key)
            except meta.OutOfMemory as error:
                index = draw(step).indices[error.place]
                raise ValueError(
                    f"{error} (architecture {index} of the split train, step {step + 1})"
                ) from error
            loss, accuracy, norm = (float(value[0]) for value in measured)
            clock.tick(step + 1, compiled=counter.programs > programs)
            programs = counter.programs
            freed_memory.release_if_grown()
            metrics.write(
                step=step + 1,
                loss=loss,
                top1=accuracy,
                gradient_norm=norm,
                architectures=(step + 1) * options.meta_batch_size,
                seconds=round(metrics.before["seconds"] + clock.seconds, 3),
                compilations=metrics.before["compilations"] + counter.count,
                compilation_seconds=round(metrics.before["compilation_seconds"] + counter.seconds, 3),
                skipped=int(state.skipped[0]),
                damaged_images=next_images.damaged,
            )
            if int(state.skipped[0]) >= options.max_skipped:
                raise NonFiniteLoss(
                    f"`loss` (={loss}) or its gradient was not finite for {options.max_skipped} steps in a row, up to "
                    f"step {step + 1}: {_before(checkpoints, step + 1 - options.max_skipped, leads)}; give a lower "
                    "--learning_rate, with --change_options=True"
                )
            if (step + 1) % options.log_every == 0 or step + 1 == last_step:
                rate = clock.rate * options.meta_batch_size
                say(
                    f"step {step + 1}/{last_step}  loss {loss:.3f}  top1 {accuracy:.1f}%  {rate:.2f} architectures/s  "
                    f"{counter.count} compilations  ETA {clock.eta}"
                )
            due = (step + 1) % options.checkpoint_every == 0 or step + 1 == last_step
            number = processes.largest(request.number)
            if due or number:
                # asked to end, the run leaves the validation, which takes long, to the next start
                progress["to_validate"] = bool(due and number and options.val_archs)
                save(validate=bool(due and not number and options.val_archs))
            if number:
                raise signals.Interrupted(
                    number, f"saved after step {step + 1}; the same command goes on from there"
                )
    best = f", best val top-1 {progress['best_top1']:.1f}%" if options.val_archs else ""
    damaged = (
        f", {next_images.damaged} damaged images replaced (see damaged_images.txt)"
        if next_images.damaged
        else ""
    )
    say(f"done: {last_step} steps{best}{damaged}, in {options.workdir}")
    run = shlex.quote(str(options.workdir))
    images = f" --data_dir={shlex.quote(str(options.data_dir))}" if options.data_dir else ""
    then = "next: "
    if len(dataset.test) >= BATCH_SIZE:  # fewer cannot be evaluated on
        say(f"{then}python evaluate.py --ckpt={run}{images} --num_archs=20  # on unseen architectures")
        then = "      "
    say(f"{then}ghn_jax.predict_parameters(model, images, {str(options.workdir)!r})  # for a model of yours")


def _replicated(array: jax.Array) -> jax.ShapeDtypeStruct:
    """The shape of an array's copies on the devices of this process."""
    return jax.ShapeDtypeStruct((jax.local_device_count(), *array.shape), array.dtype)


def _before(checkpoints: RunCheckpoints, last_good_step: int, leads: bool) -> str:
    """Which checkpoint the next start goes on from: not the latest, if nothing but skipped steps came after it."""
    latest = checkpoints.latest_step() or 0
    if leads and latest >= last_good_step and latest > 0:
        return checkpoints.set_aside(latest, "diverged")
    return f"the latest checkpoint is from before, of step {latest}"


def _validate(
    ghn_config: config.GHNConfig, params: Any, dataset: ImageDataset | StreamedDataset, options: TrainOptions
) -> float:
    """Mean top-1 of the first architectures of the split val on the first held-out images."""
    templates = deepnets_templates(ghn_config, dataset.image_size)

    def top1(index: int) -> float:
        arch = sampling.sample("val", index, image_size=dataset.image_size)
        network = lower(arch, dataset.num_classes, dataset.image_size)
        flat = predict_flat(ghn_config, params, network, templates)
        return network_accuracy(
            network,
            flat,
            dataset,
            "val",
            _VAL_IMAGES,
            options.num_workers,
            name=f"architecture {index} of val",
        ).top1

    return float(np.mean(list(lanes.run_in_lanes(top1, options.val_archs or 0))))
