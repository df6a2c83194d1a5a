"""Checkpoints of a training run: the latest one, to go on from, and the best one, to use.

Orbax writes a checkpoint under a temporary name and renames it when it is whole, so a run killed while it writes
goes on from the one before. Arrays and JSON only: loading executes no code.
"""

import pathlib
from typing import Any

import jax
import numpy as np

from ghn_jax.pretrained.runs import BEST, LATEST, directory, read
from ghn_jax.runtime.extras import extra
from ghn_jax.training.meta import TrainState

with extra("train"):
    import orbax.checkpoint as ocp


class RunCheckpoints:
    """The checkpoints under `workdir / checkpoints`."""

    def __init__(self, workdir: pathlib.Path):
        self._root = directory(workdir)
        self._managers = {kind: self._open(kind) for kind in (LATEST, BEST)}

    def _open(self, kind: str) -> ocp.CheckpointManager:
        keep = 2 if kind == LATEST else 1
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, create=True
        )
        return ocp.CheckpointManager(self._root / kind, options=options, item_names=("state", "meta"))

    def save(self, state: TrainState, meta: dict[str, Any], best: bool = False) -> None:
        """Writes the (unreplicated) state as the latest, or the best, checkpoint."""
        step = int(state.step)
        args = ocp.args.Composite(state=ocp.args.StandardSave(_as_dict(state)), meta=ocp.args.JsonSave(meta))
        self._managers[BEST if best else LATEST].save(step, args=args, force=True)

    def latest_step(self) -> int | None:
        """Step of the latest whole checkpoint, None if there is none."""
        return self._managers[LATEST].latest_step()

    def has_best(self) -> bool:
        """Whether a best checkpoint was chosen yet."""
        return self._managers[BEST].latest_step() is not None

    def meta(self, best: bool = False) -> dict[str, Any]:
        """What was saved beside the state."""
        return self._restore(best, meta=ocp.args.JsonRestore())["meta"]

    def restore(self, like: TrainState, best: bool = False) -> TrainState:
        """The state of the latest, or the best, checkpoint; `like` gives its structure.

        Raises ValueError if the checkpoint is damaged.
        """
        abstract = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), _as_dict(like))
        restored = self._restore(best, state=ocp.args.StandardRestore(abstract))["state"]
        return _from_dict(restored, like)

    def _restore(self, best: bool, **args: Any) -> Any:
        kind = BEST if best else LATEST
        return read(self._managers[kind], self._root / kind, **args)


def _as_dict(state: TrainState) -> dict[str, Any]:
    """The optimiser's state as a plain list of leaves: its nested types belong to optax, not to the file."""
    leaves = jax.tree.leaves(state.opt_state)
    data = {"params": state.params, "opt_state": {str(i): leaf for i, leaf in enumerate(leaves)}} | {
        "step": state.step,
        "skipped": state.skipped,
    }
    return data if state.average is None else data | {"average": state.average}


def _from_dict(data: dict[str, Any], like: TrainState) -> TrainState:
    leaves = [data["opt_state"][str(i)] for i in range(len(data["opt_state"]))]
    opt_state = jax.tree.unflatten(jax.tree.structure(like.opt_state), leaves)
    return TrainState(data["params"], opt_state, data["step"], data["skipped"], data.get("average"))
