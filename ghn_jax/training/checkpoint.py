"""Checkpoints of a training run: the latest ones, to go on from, and the best one, to use.

A save is one transaction: everything is written to a folder `STEP.partial`, which is renamed to `STEP` when it is on
the disk. Which checkpoint is the best is written in it too, so there is no moment at which one is there without the
other. The form is that of `ghn_jax.pretrained.runs`; arrays and JSON only: loading executes no code.
"""

import json
import os
import pathlib
import shutil
from typing import Any, TypeVar

import jax
import numpy as np
from flax import serialization

from ghn_jax.pretrained import runs
from ghn_jax.pretrained.runs import CHECKSUMS, META, STATE, DamagedCheckpoint
from ghn_jax.runtime import late_callbacks

KEPT = 3
"""How many of the latest checkpoints are kept, besides the best."""

State = TypeVar("State")


class NotFinite(ValueError):
    """A state that must not be kept: some of its numbers are infinite or not a number."""


class RunCheckpoints:
    """The checkpoints under `workdir / checkpoints`. To open them changes nothing."""

    def __init__(self, workdir: pathlib.Path):
        self._root = runs.directory(workdir)

    def save(self, state: Any, meta: dict[str, Any], best: bool = False) -> None:
        """Writes the (unreplicated) state as the latest checkpoint, and says whether it is the best so far.

        Args:
          state: any tree that has `step`, as a NamedTuple.
          meta: JSON values.

        Raises NotFinite, and OSError if it cannot be written; the checkpoints are as before then.
        """
        if not is_finite(state):
            raise NotFinite(
                f"the weights or the optimiser's state are not finite after step {int(state.step)}: they were not "
                "written, and the checkpoints are from before; the same command goes on from there"
            )
        step = int(state.step)
        record = {"best": step if best else self.best_step(), "meta": meta}
        partial = self._root / f"{step}.partial"
        _remove(partial)
        partial.mkdir(parents=True)
        try:
            arrays = jax.tree.map(np.asarray, serialization.to_state_dict(state))
            with late_callbacks.unheard():
                runs.checkpointer().save(partial / STATE, arrays)
            (partial / META).write_text(json.dumps(record))
            (partial / CHECKSUMS).write_text(runs.checksums(partial))
            _on_disk(partial / CHECKSUMS)
        except Exception as error:  # orbax raises many kinds where the disk is full
            _remove(partial)
            reason = error.strerror if isinstance(error, OSError) else type(error).__name__
            free = shutil.disk_usage(self._root).free
            before = runs.steps(self._root)
            then = f"goes on from step {before[-1]}" if before else "begins again"
            raise OSError(
                f"checkpoint {self._root / str(step)} cannot be written ({reason}; {free / 2**20:.0f} MiB are free): "
                f"make room, then start the same command again, which {then}"
            ) from error
        for folder in (path for path in partial.rglob("*") if path.is_dir()):
            _on_disk(folder)
        _on_disk(partial)
        self._put(partial, step)
        self._prune()

    def _put(self, partial: pathlib.Path, step: int) -> None:
        """The moment at which a checkpoint is there."""
        final, former = self._root / str(step), self._root / f"{step}.replaced"
        if final.exists():
            os.rename(final, former)
        os.rename(partial, final)
        _on_disk(self._root)
        _remove(former)

    def _prune(self) -> None:
        """Removes all but the latest, and those that they name as the best."""
        found = runs.steps(self._root)
        kept = set(found[-KEPT:])
        kept |= {runs.read_meta(self._root / str(step))["best"] for step in kept}
        for step in set(found) - kept:
            removed = self._root / f"{step}.partial"
            os.rename(self._root / str(step), removed)  # never half a checkpoint under its name
            _remove(removed)

    def heal(self) -> list[str]:
        """Removes what an interrupted save left, and sets damaged checkpoints aside under another name.

        Returns what was set aside, in sentences. Raises OSError for files that cannot be read.
        """
        if not self._root.is_dir():
            return []
        for former in self._root.glob("*.replaced"):  # killed between the two renames
            if not former.with_suffix("").exists():
                os.rename(former, former.with_suffix(""))
        for pattern in ("*.partial", "*.replaced"):
            for left in self._root.glob(pattern):
                _remove(left)
        said = []
        for step in runs.steps(self._root):
            folder = self._root / str(step)
            try:
                runs.verify(folder)
            except DamagedCheckpoint:
                said.append(self.set_aside(step, "damaged"))
                continue
            if not is_finite(runs.read_state(folder)):
                said.append(self.set_aside(step, "not-finite"))
        return said

    def set_aside(self, step: int, why: str) -> str:
        """Renames a checkpoint to `STEP.why`, so that the one before is the latest; says so."""
        aside = self._root / f"{step}.{why}"
        _remove(aside)
        os.rename(self._root / str(step), aside)
        return f"checkpoint {step} is {why.replace('-', ' ')}: set aside as {aside}"

    def latest_step(self) -> int | None:
        """Step of the latest whole checkpoint, None if there is none."""
        return max(runs.steps(self._root), default=None)

    def best_step(self) -> int | None:
        """Step of the best checkpoint, None if none was chosen yet or it is no more."""
        latest = self.latest_step()
        best = None if latest is None else runs.read_meta(self._root / str(latest))["best"]
        return best if best in runs.steps(self._root) else None

    def has_best(self) -> bool:
        """Whether a best checkpoint was chosen yet."""
        return self.best_step() is not None

    def meta(self, best: bool = False) -> dict[str, Any]:
        """What was saved beside the state."""
        return runs.read_meta(self._folder(best))["meta"]

    def restore(self, like: State, best: bool = False) -> State:
        """The state of the latest, or the best, checkpoint; `like` gives its structure.

        Raises DamagedCheckpoint, and ValueError if it is of another structure.
        """
        folder = self._folder(best)
        runs.verify(folder)
        saved = runs.read_state(folder)
        try:
            state: Any = serialization.from_state_dict(like, saved)
        except (ValueError, KeyError):
            state = None
        if jax.tree.map(np.shape, state) != jax.tree.map(np.shape, like):
            raise ValueError(
                f"checkpoint {folder} is of another GHN or another version of ghn_jax: start anew in another --workdir"
            )
        return state

    def _folder(self, best: bool) -> pathlib.Path:
        step = self.best_step() if best else self.latest_step()
        if step is None:
            raise ValueError(f"{self._root} holds no {'best' if best else 'whole'} checkpoint yet")
        return self._root / str(step)


def is_finite(tree: Any) -> bool:
    """Whether all numbers of a tree are finite."""
    return all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(tree))


def _remove(folder: pathlib.Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _on_disk(path: pathlib.Path) -> None:
    """Returns when the content of a file, or the names in a folder, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
