"""The checkpoints of a training run, as far as it takes to read a GHN from them.

    WORKDIR/checkpoints/STEP/
      state/        arrays, by Orbax
      meta.json     what was saved beside them, and the step of the best checkpoint so far
      SHA256SUMS    of every other file, as `sha256sum -c` reads it

A folder gets its name, which is a number, when all of it is on the disk: what has another name is no checkpoint.
"""

import hashlib
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np

from ghn_jax.runtime.extras import extra

with extra("train"):
    import orbax.checkpoint as ocp

STATE, META, CHECKSUMS = "state", "meta.json", "SHA256SUMS"
"""What a checkpoint consists of."""


class DamagedCheckpoint(ValueError):
    """A checkpoint whose files are not as they were written."""


def directory(workdir: pathlib.Path) -> pathlib.Path:
    """Where a run keeps its checkpoints."""
    return workdir.resolve() / "checkpoints"


def steps(root: pathlib.Path) -> list[int]:
    """Steps of the checkpoints in a directory, in order."""
    if not root.is_dir():
        return []
    names = [path.name for path in root.iterdir() if path.name.isdecimal()]
    return sorted(
        int(name) for name in names if str(int(name)) == name
    )  # not 007, nor digits of other scripts


def load_weights(workdir: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights of a training run, and what was saved beside them: of the best checkpoint, or else of the latest.

    Raises ValueError if there is none of a trained GHN yet, and DamagedCheckpoint.
    """
    root = directory(workdir)
    if not root.is_dir():
        raise ValueError(
            f"`ckpt` (={str(workdir)!r}) holds no checkpoints: give the --workdir of a training run"
        )
    found = steps(root)
    if not found or found[-1] == 0:
        raise ValueError(f"`ckpt` (={str(workdir)!r}) holds no whole checkpoint yet: train for longer")
    best = read_meta(root / str(found[-1]))["best"]
    folder = root / str(best if best in found else found[-1])
    verify(folder)
    state = read_state(folder)
    return state.get("average") or state["params"], read_meta(folder)["meta"]


# -- one checkpoint ------------------------------------------------------------------------------------------


def checksums(folder: pathlib.Path) -> str:
    """What SHA256SUMS says of a folder as it is now, every file of which is on the disk then."""
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path != folder / CHECKSUMS:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            lines.append(f"{digest}  {path.relative_to(folder)}\n")
    return "".join(lines)


def verify(folder: pathlib.Path) -> None:
    """Raises DamagedCheckpoint if a file has changed, and OSError if one cannot be read."""
    try:
        whole = (folder / CHECKSUMS).read_bytes() == checksums(folder).encode()
    except FileNotFoundError:
        whole = False
    if not whole:
        raise DamagedCheckpoint(
            f"checkpoint {folder} is damaged (its {CHECKSUMS} differ): start the run again, which goes on from the "
            "one before, or remove that folder"
        )


def read_meta(folder: pathlib.Path) -> dict[str, Any]:
    """The best step, `best`, and what was saved beside the state, `meta`."""
    try:
        record = json.loads((folder / META).read_bytes())
    except (FileNotFoundError, ValueError):
        record = None
    if not isinstance(record, dict) or not {"best", "meta"} <= set(record):
        verify(folder)  # says what is wrong
        raise DamagedCheckpoint(f"{folder / META} is of something else: remove that folder")
    return record


def read_state(folder: pathlib.Path) -> dict[str, Any]:
    """The arrays of a checkpoint that was verified, as nested dictionaries."""
    return jax.tree.map(np.asarray, checkpointer().restore(folder / STATE))


def checkpointer() -> ocp.Checkpointer:
    """Orbax, by this process alone: where several train, it waits for none of the others."""
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"process{jax.process_index()}",
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)
