"""Checkpoints of a training run: the latest one, to go on from, and the best one, to use.

Orbax writes a checkpoint under a temporary name and renames it when it is whole, so a run killed while it writes
goes on from the one before. Arrays and JSON only: loading executes no code.
"""

import pathlib
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp

from ghn_jax.pretrained import TrainedGHN, config_from_dict
from ghn_jax.training.meta import TrainState, init_state, make_optimizer

_LATEST, _BEST = "latest", "best"


class RunCheckpoints:
    """The checkpoints under `workdir / checkpoints`."""

    def __init__(self, workdir: pathlib.Path):
        self._root = workdir.resolve() / "checkpoints"
        self._managers = {kind: self._open(kind) for kind in (_LATEST, _BEST)}

    def _open(self, kind: str) -> ocp.CheckpointManager:
        keep = 2 if kind == _LATEST else 1
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, create=True
        )
        return ocp.CheckpointManager(self._root / kind, options=options, item_names=("state", "meta"))

    def save(self, state: TrainState, meta: dict[str, Any], best: bool = False) -> None:
        """Writes the (unreplicated) state as the latest, or the best, checkpoint."""
        step = int(state.step)
        args = ocp.args.Composite(state=ocp.args.StandardSave(_as_dict(state)), meta=ocp.args.JsonSave(meta))
        self._managers[_BEST if best else _LATEST].save(step, args=args, force=True)

    def latest_step(self) -> int | None:
        """Step of the latest whole checkpoint, None if there is none."""
        return self._managers[_LATEST].latest_step()

    def has_best(self) -> bool:
        """Whether a best checkpoint was chosen yet."""
        return self._managers[_BEST].latest_step() is not None

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
        manager = self._managers[_BEST if best else _LATEST]
        step = manager.latest_step()
        try:
            return manager.restore(step, args=ocp.args.Composite(**args))
        except (
            Exception
        ) as error:  # orbax raises many kinds for a damaged file; all mean the same to the user
            raise ValueError(
                f"checkpoint {self._root}/{_BEST if best else _LATEST}/{step} is damaged ({type(error).__name__}): "
                "remove that folder to go on from the one before, or start anew in another --workdir"
            ) from error


def load_run(workdir: pathlib.Path) -> TrainedGHN:
    """The GHN of a training run: its best checkpoint, or the latest if none was chosen yet.

    Raises ValueError if there is no whole checkpoint.
    """
    if not (workdir / "checkpoints").is_dir():
        raise ValueError(
            f"`ckpt` (={str(workdir)!r}) holds no checkpoints: give the --workdir of a training run"
        )
    checkpoints = RunCheckpoints(workdir)
    best = checkpoints.has_best()
    if not best and checkpoints.latest_step() is None:
        raise ValueError(f"`ckpt` (={str(workdir)!r}) holds no whole checkpoint yet: train for longer")
    meta = checkpoints.meta(best)
    config = config_from_dict(meta["config"])
    optimizer = make_optimizer(optax.constant_schedule(1e-3), 0.0, 1.0)  # as in training, up to numbers
    like = jax.eval_shape(lambda: init_state(config, optimizer, jax.random.key(0)))
    state = checkpoints.restore(like, best)
    return TrainedGHN(config, jax.tree.map(np.asarray, state.params), meta["info"])


def _as_dict(state: TrainState) -> dict[str, Any]:
    """The optimiser's state as a plain list of leaves: its nested types belong to optax, not to the file."""
    leaves = jax.tree.leaves(state.opt_state)
    return {"params": state.params, "opt_state": {str(i): leaf for i, leaf in enumerate(leaves)}} | {
        "step": state.step,
        "skipped": state.skipped,
    }


def _from_dict(data: dict[str, Any], like: TrainState) -> TrainState:
    leaves = [data["opt_state"][str(i)] for i in range(len(data["opt_state"]))]
    opt_state = jax.tree.unflatten(jax.tree.structure(like.opt_state), leaves)
    return TrainState(data["params"], opt_state, data["step"], data["skipped"])
