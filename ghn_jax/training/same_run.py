"""Whether a run may go on from a checkpoint: of the same GHN, with the same options, on the same images."""

import shlex
from typing import Any

from ghn_jax.deepnets import sampling
from ghn_jax.images.identity import Identity
from ghn_jax.models.config import GHNConfig
from ghn_jax.training import recipes
from ghn_jax.training.options import TrainOptions


def check(
    options: TrainOptions, ghn_config: GHNConfig, data: Identity, schedule_steps: int, saved: dict[str, Any]
) -> list[str]:
    """Compares a run with what is saved beside a checkpoint.

    Args:
      schedule_steps: over how many steps the learning rate changes.

    Returns what there is to note. Raises ValueError, with what differs, unless it is of this run, or of one that may be
    gone on from: other options and images need `change_options`; another GHN, or a recipe that keeps another state, is
    refused in any case.
    """
    where = f"`workdir` (={str(options.workdir)!r}) holds a run"
    changed_data = data.changes(saved["data"]) if "data" in saved else []
    changes = ghn_changes(saved["config"], ghn_config)
    if changes:
        raise ValueError(
            f"{where} of another GHN ({'; '.join(changes + changed_data)}): give another --workdir"
        )
    before, now = _options_before(saved), options.identity()
    differences = [f"--{k} was {before[k]}, is {v}" for k, v in now.items() if before[k] != v]
    recipe, recipe_before = options.full_recipe(), recipes.recipe(before["recipe"])
    if _state(recipe) != _state(recipe_before):
        raise ValueError(
            f"{where} of the recipe {before['recipe']} ({_state(recipe_before)}), whose state {options.recipe} "
            f"({_state(recipe)}) cannot go on with: use that recipe, or give another --workdir and "
            f"--init={shlex.quote(str(options.workdir))} to start from its weights"
        )
    if before["recipe"] == options.recipe:  # which may be another one in another version
        parts = vars(recipes.Recipe()) | saved["recipe"] if "recipe" in saved else vars(recipe)
        differences += [
            f"{name} of the recipe {options.recipe} was {parts[name]}, is {value}"
            for name, value in vars(recipe).items()
            if name not in now and parts[name] != value
        ]
    assert options.draw
    if before["draw"] == options.draw:
        draw = sampling.DRAWS[options.draw].changes()
        draw_before = saved.get("draw", draw)
        if draw_before != draw:
            differences.append(f"--draw={options.draw} meant {draw_before}, means {draw}")
    schedule_before = saved.get("schedule_steps", schedule_steps)
    rescheduled = recipe.schedule == "cosine" and schedule_before != schedule_steps
    if rescheduled:
        differences.append(
            f"--steps was {schedule_before}, is {schedule_steps}, over which the learning rate falls to nothing"
        )
    if differences and not options.change_options:
        raise ValueError(
            f"{where} with other options ({'; '.join(differences)}): "
            "use those, another --workdir, or --change_options=True"
        )
    if changed_data and not options.change_options:
        raise ValueError(
            f"{where} on other images ({'; '.join(changed_data)}): give those, another --workdir, or "
            "--change_options=True"
        )
    notes = [f"gone on with although {change}" for change in differences + changed_data]
    if rescheduled:
        notes.append(f"the learning rate goes on as at this step of a run of {schedule_steps} steps")
    if "data" not in saved:
        notes.append(
            "the checkpoint does not say what images it was trained on: these are taken to be the same"
        )
    if "draw" not in saved and before["draw"] == options.draw == "narrow":  # the others always meant the same
        notes.append(
            "the checkpoint does not say which networks were light enough for --draw=narrow: earlier versions took "
            "those of many parameters too"
        )
    return notes


def ghn_changes(before: dict[str, Any], now: GHNConfig) -> list[str]:
    """How a configuration differs from one that was saved; what is new since then counts as the same."""
    return [f"{k} was {before[k]}, is {v}" for k, v in vars(now).items() if before.get(k, v) != v]


def _options_before(saved: dict[str, Any]) -> dict[str, Any]:
    """The options of a checkpoint, and for those that are newer what was done before they were."""
    image_size = 32 if saved["config"]["max_kernel"] == 11 else 224
    first = {"recipe": "published", "draw": "published", "image_size": image_size}
    return vars(TrainOptions()) | first | saved["options"]


def _state(recipe: recipes.Recipe) -> str:
    """What a recipe keeps from step to step."""
    return f"optimiser {recipe.optimizer}, {'no ' if recipe.average is None else ''}average of weights"
