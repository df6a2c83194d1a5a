import pathlib
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.parity import golden_params
from ghn_jax import pretrained
from ghn_jax.models.config import preset
from ghn_jax.training.checkpoint import RunCheckpoints
from ghn_jax.training.meta import TrainState


def state(step: int) -> TrainState:
    return TrainState(
        {"w": jnp.full(3, float(step))}, (jnp.ones(2), {"m": jnp.zeros(3)}), jnp.int32(step), jnp.int32(0)
    )


def test_round_trip_of_latest_and_best(tmp_path: pathlib.Path):
    checkpoints = RunCheckpoints(tmp_path)
    assert checkpoints.latest_step() is None
    checkpoints.save(state(3), {"progress": 1})
    checkpoints.save(state(3), {"progress": 1}, best=True)
    checkpoints.save(state(5), {"progress": 2})
    again = RunCheckpoints(tmp_path)
    assert again.latest_step() == 5
    assert again.meta() == {"progress": 2}
    assert again.meta(best=True) == {"progress": 1}
    np.testing.assert_array_equal(again.restore(state(0)).params["w"], [5, 5, 5])
    np.testing.assert_array_equal(again.restore(state(0), best=True).params["w"], [3, 3, 3])


KILLED_WHILE_WRITING = """
import os, pathlib, signal, sys
sys.path.insert(0, "tests/training")
from test_checkpoint import RunCheckpoints, state
checkpoints = RunCheckpoints(pathlib.Path(sys.argv[1]))
checkpoints.save(state(1), {})
for name in ("rename", "replace"):
    setattr(os, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
checkpoints.save(state(2), {})
"""


def test_kill_in_the_middle_of_a_write_leaves_the_one_before(tmp_path: pathlib.Path):
    child = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path)], capture_output=True, text=True
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    left = [path.name for path in (tmp_path / "checkpoints" / "latest").iterdir()]
    assert len(left) == 2, left  # the first checkpoint, and part of the second
    checkpoints = RunCheckpoints(tmp_path)
    assert checkpoints.latest_step() == 1
    np.testing.assert_array_equal(checkpoints.restore(state(0)).params["w"], [1, 1, 1])
    checkpoints.save(state(2), {})
    assert RunCheckpoints(tmp_path).latest_step() == 2


def test_damaged_checkpoint_is_an_error(tmp_path: pathlib.Path):
    RunCheckpoints(tmp_path).save(state(1), {"progress": 1})
    for file in (tmp_path / "checkpoints" / "latest" / "1").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(ValueError, match="is damaged"):
        RunCheckpoints(tmp_path).restore(state(0))


def test_safetensors_round_trip(tmp_path: pathlib.Path):
    config = preset("ghn1")
    params = golden_params(config)
    path = tmp_path / "ghn.safetensors"
    pretrained.save(path, pretrained.TrainedGHN(config, params, {"steps": 1}))
    loaded = pretrained.load(path)
    assert loaded.config == config
    assert loaded.info == {"steps": 1}
    np.testing.assert_array_equal(
        loaded.params["decoder"]["decoder.fc.0.weight"], params["decoder"]["decoder.fc.0.weight"]
    )
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        pretrained.load(path)


@pytest.mark.parametrize("source", ["no-such-ghn", "no/such/file.safetensors", "tests"])
def test_load_names_what_is_missing(source: str):
    with pytest.raises(ValueError, match="ckpt"):
        pretrained.load(source)


def test_bundled_ghns_load_by_name_and_say_how_they_were_trained():
    assert "ghn2-digits" in pretrained.bundled()
    for name in pretrained.bundled():
        ghn = pretrained.load(name)
        assert {"dataset", "steps", "command", "accuracy"} <= set(ghn.info)
