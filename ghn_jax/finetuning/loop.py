"""Trains a network from a start."""

import contextlib
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ghn_jax.evaluation.accuracy import NotFinite
from ghn_jax.finetuning.classifier import Classifier, classifier, code, logits_of, named, unnamed
from ghn_jax.finetuning.data import Arrays, Batch, Data, make_data
from ghn_jax.finetuning.recipe import Recipe, learning_rate, make_optimizer
from ghn_jax.finetuning.starts import RANDOM, make_start
from ghn_jax.finetuning.step import Devices, State, make_step
from ghn_jax.images.identity import Identity
from ghn_jax.pretrained import TrainedGHN
from ghn_jax.runtime import signals
from ghn_jax.runtime.errors import check_range
from ghn_jax.runtime.status import Lines, Shown
from ghn_jax.tracing.batch_norm import fill_running_statistics
from ghn_jax.training.checkpoint import RunCheckpoints
from ghn_jax.training.meta import TrainState
from ghn_jax.training.progress import Clock
from ghn_jax.training.workdir import MetricsFile, locked


class NonFiniteLoss(ValueError):
    """The loss became infinite or not a number."""


class Scored(NamedTuple):
    """Accuracy on test images, in percent, after so many steps."""

    step: int
    top1: float
    top5: float


class Finetuned(NamedTuple):
    """A trained network.

    Attributes:
      variables: as `ghn_jax.predict_parameters` returns them.
      tested: in the order of steps.
      notes: what there is to say of the start.
    """

    variables: Any
    tested: list[Scored]
    notes: tuple[str, ...]


def finetune(
    model: Any,
    data: Any,
    test: Arrays | None = None,
    *,
    init: str | pathlib.Path | TrainedGHN = RANDOM,
    recipe: Recipe | None = None,
    workdir: str | pathlib.Path | None = None,
    checkpoint_every: int = 500,
    log_every: int = 50,
    say: Callable[[str], None] | None = None,
) -> Finetuned:
    """Trains a classifier: a Flax Linen or NNX module, or a `ghn_jax.Function` (which has no training mode).

    Batch norm keeps running statistics; before the first step they are those of the first batch.

    Args:
      model: left as it is.
      data: an image set of `ghn_jax.images`; images and labels as arrays, normalised as the model takes them; or an
        iterable of such pairs, one for each step.
      test: images and labels to test on, unless `data` is an image set.
      init: what to start from: "random"; a GHN, its name or path; or the work directory of an earlier run.
      recipe: settings of the training.
      workdir: keeps checkpoints and metrics, and goes on from the latest if there is one; None keeps nothing. One run
        at a time has it.
      checkpoint_every: steps between two checkpoints.
      log_every: steps between two lines.
      say: takes the lines.

    Raises ValueError for settings that do not fit the model, the data or the checkpoint, and if an iterator ends early;
    NonFiniteLoss, in which case the checkpoints are from before; signals.Interrupted when asked to end, which it does
    when a step is done and saved.
    """
    recipe, say = recipe or Recipe(), say or (lambda _: None)
    recipe.check()
    for name, steps in (("checkpoint_every", checkpoint_every), ("log_every", log_every)):
        check_range(name, steps, 1)
    shown = Lines(say)
    workdir = None if workdir is None else pathlib.Path(workdir)
    return train(
        model,
        make_data(data, test, workdir),
        init,
        recipe,
        workdir,
        checkpoint_every,
        log_every,
        shown,
        identity={},
    )


def train(
    model: Any,
    data: Data,
    init: str | pathlib.Path | TrainedGHN,
    recipe: Recipe,
    workdir: pathlib.Path | None,
    checkpoint_every: int,
    log_every: int,
    shown: Shown,
    identity: dict[str, Any],
) -> Finetuned:
    """As `finetune`; `identity` holds JSON values which a run in the same directory must share."""
    say = shown.say
    with locked(workdir) if workdir else contextlib.nullcontext():
        # -- model, optimiser and start ----------------------------------------------------------------------------
        sample_input = jax.ShapeDtypeStruct((1, *data.image_shape), jnp.float32)
        network = classifier(model, sample_input)
        if data.num_images is None and recipe.steps is None:
            raise ValueError("`steps` (=None) must be given, since `data` is an iterator: one batch a step")
        num_images = data.num_images or 0
        last_step = recipe.num_steps(num_images)
        batch_size = recipe.images_per_step(num_images) if num_images else 0
        tests = recipe.evaluation_steps(last_step)
        rates = np.asarray(jax.vmap(learning_rate(recipe, last_step))(jnp.arange(last_step)))
        optimizer = make_optimizer(recipe, last_step)
        logits = logits_of(network, sample_input)
        _check_logits(logits, data)
        shown.doing(f"making the start {init if isinstance(init, str) else ''}".rstrip())
        variables, notes, source = make_start(init, model, network, sample_input, recipe)
        params, state = network.split(variables)
        if not jax.tree.leaves(params):
            raise ValueError("`model` has no parameters: there is nothing to train")
        begin = State(params, state, jax.jit(optimizer.init)(params), jnp.zeros((), jnp.int32))

        # -- resume: checkpoint (settings must agree), then the metrics up to it -------------------------------------
        identity |= recipe.identity() | {"last_step": last_step, "parameters": _shapes(params)}
        identity |= {"start": source, "data": data.identity}
        checkpoints = RunCheckpoints(workdir) if workdir else None
        progress: dict[str, Any] = {"images": {}}
        mark = None
        for remark in checkpoints.heal() if checkpoints else ():
            say(f"note: {remark}")
        fresh = checkpoints is None or checkpoints.latest_step() is None
        if checkpoints is not None:
            identity["model"] = _code(network, params, state, data, batch_size)
        if checkpoints is not None and not fresh:
            saved = checkpoints.meta()
            for remark in _check_same_run(workdir, identity, saved.get("finetuned")):
                say(f"note: {remark}")
            progress |= saved["progress"]
            mark = saved["metrics"]
            begin = _restored(checkpoints.restore(_saved(begin)), begin)
            say(f"resuming {workdir} after step {int(begin.step)}")
        first_step = int(begin.step)
        shown.doing("filling in running statistics")
        file = workdir / "metrics.jsonl" if workdir else None
        metrics = MetricsFile(file, mark)
        tested = [] if file is None else read_tests(file, first_step)
        batches = data.batches(batch_size, recipe.seed, first_step, progress["images"])
        if not batch_size:  # of an iterator nobody knows what labels come
            batches = _within(batches, logits.shape[1])
        batch = batches(first_step) if first_step < last_step else None
        if fresh and batch is not None and jax.tree.leaves(begin.state):
            filled = fill_running_statistics(model, network.join(begin.params, begin.state), batch[0])
            begin = begin._replace(state=network.split(filled)[1])
        for note in notes if fresh else ():
            say(f"note: {note}")

        # -- the loop ------------------------------------------------------------------------------------------------
        devices = Devices()
        now = devices.replicate(jax.tree.map(jnp.array, begin))  # copies: a step uses its state up
        step_of, evaluate = make_step(network, optimizer, recipe), jax.jit(network.evaluate)
        dropout_key = jax.random.fold_in(jax.random.key(recipe.seed), 1)

        clock = Clock(first_step, last_step)

        def step_and_rest() -> str:
            return clock.describe(first="it")

        def test() -> None:
            shown.doing(f"testing after step {int(now.step)}")
            try:
                result = data.test(lambda images: evaluate(now.params, now.state, images))
            except NotFinite as error:
                named = init if isinstance(init, str | pathlib.Path) else "a GHN"
                remedy = _lower(recipe) if int(now.step) else f"give another `init` (={str(named)!r})"
                raise NonFiniteLoss(f"{error}, after step {int(now.step)}: {remedy}") from error
            if result is not None:
                tested.append(Scored(int(now.step), result.top1, result.top5))
                metrics.write(step=int(now.step), test_top1=result.top1, test_top5=result.top5)
                say(f"step {int(now.step)}/{last_step}  test top-1 {result.top1:.2f} %")
            shown.doing(step_and_rest)

        def save() -> None:
            if checkpoints is not None:
                meta = {"finetuned": identity, "progress": progress, "metrics": metrics.mark()}
                checkpoints.save(_saved(jax.device_get(now)), meta)

        say(
            f"{_shapes(params):,} parameters, steps {first_step} to {last_step}"
            + (f" of {batch_size} images" if batch_size else "")
            + f", {jax.device_count()} device(s) ({jax.devices()[0].device_kind})"
            + (f" -> {workdir}" if workdir else "")
        )
        remark = (
            "saving when this step is done; once more ends at once"
            if workdir
            else "ending when this step is done"
        )
        shown.doing(step_and_rest)
        with contextlib.closing(metrics), contextlib.closing(data), signals.noted(remark) as request:
            if fresh:  # so that there never are metrics without a checkpoint
                save()
            if first_step == 0 and 0 in tests:
                test()
            for step in range(first_step, last_step):
                assert batch is not None
                images, labels = devices.share(batch)
                now, measured = step_of(now, images, labels, dropout_key)
                if step + 1 < last_step:
                    batch = batches(step + 1)  # while the devices are at work
                loss, top1, norm = (float(value) for value in measured)
                if not np.isfinite(loss) or np.isnan(norm):
                    what = f"the norm of the gradient (={norm})" if np.isfinite(loss) else f"`loss` (={loss})"
                    raise NonFiniteLoss(f"{what} is not finite at step {step + 1}: {_lower(recipe)}")
                clock.tick(step + 1)
                metrics.write(
                    step=step + 1,
                    loss=loss,
                    top1=top1,
                    gradient_norm=norm,
                    learning_rate=float(rates[step]),
                    seconds=round(metrics.before["seconds"] + clock.seconds, 3),
                )
                if (step + 1) % log_every == 0 or step + 1 == last_step:
                    say(f"step {step + 1}/{last_step}  loss {loss:.3f}  top1 {top1:.1f} %  ETA {clock.eta}")
                if step + 1 in tests:
                    test()
                if (step + 1) % checkpoint_every == 0 or step + 1 == last_step or request.number:
                    save()
                if request.number and step + 1 < last_step:
                    goes_on = f"saved after step {step + 1}; the same command goes on from there"
                    nothing = f"step {step + 1} was the last, and nothing is kept without `workdir`"
                    raise signals.Interrupted(request.number, goes_on if workdir else nothing)
        if data.damage:
            say(f"note: {data.damage}")
        return Finetuned(network.join(now.params, now.state), tested, notes)


def _lower(recipe: Recipe) -> str:
    """What helps where training diverges."""
    return (
        f"lower `learning_rate` (={recipe.learning_rate}), or add `warmup_steps`; checkpoints are as before"
    )


def read_tests(file: pathlib.Path, last: int) -> list[Scored]:
    """The tests that a run has written down, up to a step."""
    records = [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []
    return [
        Scored(r["step"], r["test_top1"], r["test_top5"])
        for r in records
        if "test_top1" in r and r["step"] <= last
    ]


def _check_logits(logits: jax.ShapeDtypeStruct, data: Data) -> None:
    """Raises ValueError for a model that has not as many logits as there are classes."""
    if logits.ndim != 2 or logits.shape[0] != 1:
        raise ValueError(f"`model`'s output has shape {logits.shape}: a classifier returns (batch, label)")
    if data.num_classes is not None and logits.shape[1] < data.num_classes:
        raise ValueError(
            f"`model` has {logits.shape[1]} logits and the images have {data.num_classes} classes: make it with "
            f"{data.num_classes}"
        )


def _within(batches: Callable[[int], Batch], num_logits: int) -> Callable[[int], Batch]:
    """The same batches; a label that no logit is for is an error."""

    def checked(step: int) -> Batch:
        images, labels = batches(step)
        if (most := int(labels.max())) >= num_logits:
            raise ValueError(
                f"`data` has label {most} in batch {step + 1}, and `model` has {num_logits} logits: make it with as "
                "many as there are classes; checkpoints are as before"
            )
        return images, labels

    return checked


def _check_same_run(
    workdir: pathlib.Path | None, identity: dict[str, Any], saved: dict[str, Any] | None
) -> list[str]:
    """What is to be said of a run that goes on; ValueError if it cannot."""
    if saved is None:
        raise ValueError(f"`workdir` (={str(workdir)!r}) holds a run of another kind: give another --workdir")
    unknown = {"start", "data", "model"} - saved.keys()  # of earlier versions
    if _version(saved.get("model", "")) != _version(identity["model"]):  # the same model may read otherwise
        unknown.add("model")
    differences = [
        _difference(name, saved.get(name), value)
        for name, value in identity.items()
        if name not in unknown and saved.get(name) != value
    ]
    if differences:
        raise ValueError(
            f"`workdir` (={str(workdir)!r}) holds another run ({'; '.join(differences)}): use those settings, or "
            "another --workdir"
        )
    kinds = [_UNTOLD[name] for name in _UNTOLD if name in unknown]
    return [f"the run began with another version, so {', '.join(kinds)} are not checked"] if kinds else []


_UNTOLD = {"start": "the weights of its start", "data": "its images", "model": "the operations of its model"}


def _version(model: str) -> str:
    """The version of JAX that a hash of a model belongs to."""
    return model.rpartition(" ")[0]


def _difference(name: str, before: Any, now: Any) -> str:
    if name == "start":
        return "the weights of its start were others"
    if name == "model":
        return "its model computed something else"
    if name != "data":
        return f"{name} was {before}, is {now}"
    if "classes" not in before or "classes" not in now:  # arrays or an iterator
        return "its images were others"
    identity = Identity(tuple(now["classes"]), now["num_images"], now["fingerprint"])
    return "the images changed: " + ", ".join(identity.changes(before))


def _code(network: Classifier, params: Any, state: Any, data: Data, batch_size: int) -> str:
    """What tells the model of a run: what it computes in training; of batches of unknown size, in evaluation."""
    images = jax.ShapeDtypeStruct((batch_size or 1, *data.image_shape), jnp.float32)
    if batch_size:
        return code(network.apply, params, state, images, jax.random.key(0))
    return code(network.evaluate, params, state, images)


def _shapes(params: Any) -> int:
    """Number of parameters, by which models are told apart."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def _saved(state: State) -> TrainState:
    """The state as checkpoints keep it, leaves by name."""
    weights = {"params": named(state.params), "state": named(state.state)}
    return TrainState(weights, state.opt_state, state.step, jnp.zeros((), jnp.int32))


def _restored(saved: TrainState, like: State) -> State:
    params, state = (
        unnamed(saved.params.get(kind) or {}, tree)
        for kind, tree in (("params", like.params), ("state", like.state))
    )
    opt_state = jax.tree.map(lambda _, leaf: jnp.asarray(leaf), like.opt_state, saved.opt_state)
    return State(params, state, opt_state, jnp.asarray(saved.step))
