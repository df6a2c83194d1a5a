"""The checkpoints of a training run, as far as it takes to read a GHN from them."""

import pathlib
from typing import Any

import jax
import numpy as np

from ghn_jax.runtime.extras import extra

with extra("train"):
    import orbax.checkpoint as ocp

LATEST, BEST = "latest", "best"
"""Kinds of checkpoints: the one to go on from, the one to use."""


def directory(workdir: pathlib.Path) -> pathlib.Path:
    """Where a run keeps its checkpoints."""
    return workdir.resolve() / "checkpoints"


def load_weights(workdir: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights of a training run, and what was saved beside them: of the best checkpoint, or else of the latest.

    Raises ValueError if there is no whole checkpoint.
    """
    root = directory(workdir)
    if not root.is_dir():
        raise ValueError(
            f"`ckpt` (={str(workdir)!r}) holds no checkpoints: give the --workdir of a training run"
        )
    for kind in (BEST, LATEST):
        if not (root / kind).is_dir():
            continue
        with ocp.CheckpointManager(root / kind, item_names=("state", "meta")) as manager:
            if manager.latest_step() is not None:
                args = {"state": ocp.args.StandardRestore(), "meta": ocp.args.JsonRestore()}
                saved = read(manager, root / kind, **args)
                weights = saved["state"].get("average", saved["state"]["params"])
                return jax.tree.map(np.asarray, weights), saved["meta"]
    raise ValueError(f"`ckpt` (={str(workdir)!r}) holds no whole checkpoint yet: train for longer")


def read(manager: ocp.CheckpointManager, folder: pathlib.Path, **args: Any) -> Any:
    """Items of the last checkpoint in a folder; ValueError if it is damaged."""
    step = manager.latest_step()
    try:
        return manager.restore(step, args=ocp.args.Composite(**args))
    except Exception as error:  # orbax raises many kinds for a damaged file; all mean the same to the user
        raise ValueError(
            f"checkpoint {folder}/{step} is damaged ({type(error).__name__}): "
            "remove that folder to go on from the one before, or start anew in another --workdir"
        ) from error
