import os
import pathlib
import shutil
import signal
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from commands_in_forks import Forks

from benchmarks.parity import golden_params
from ghn_jax import pretrained
from ghn_jax.models.config import preset
from ghn_jax.pretrained import runs
from ghn_jax.pretrained.runs import load_weights
from ghn_jax.training import checkpoint
from ghn_jax.training.checkpoint import KEPT, NotFinite, RunCheckpoints
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


def test_kill_in_the_middle_of_a_write_leaves_the_one_before(forks: Forks, tmp_path: pathlib.Path):
    child = forks.run("python", "-c", KILLED_WHILE_WRITING, tmp_path)
    assert child.returncode == -signal.SIGKILL, child.stderr
    left = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert len(left) == 2, left  # the first checkpoint, and part of the second
    checkpoints = RunCheckpoints(tmp_path)
    assert checkpoints.latest_step() == 1
    np.testing.assert_array_equal(checkpoints.restore(state(0)).params["w"], [1, 1, 1])
    checkpoints.save(state(2), {})
    assert RunCheckpoints(tmp_path).latest_step() == 2


def test_damaged_checkpoint_is_an_error(tmp_path: pathlib.Path):
    RunCheckpoints(tmp_path).save(state(1), {"progress": 1})
    for file in (tmp_path / "checkpoints" / "1").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(ValueError, match="is damaged"):
        RunCheckpoints(tmp_path).restore(state(0))


def files(checkpoint: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def test_killed_at_any_moment_a_save_leaves_the_one_before_or_itself(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """Copies what is on the disk before each change to it, as a kill would leave it."""
    run, copies = tmp_path / "run", []
    copying = threading.Lock()

    def copied(change):
        def call(*args, **kwargs):
            if copying.acquire(blocking=False):  # else it is a change that copying makes
                copies.append(tmp_path / f"copy{len(copies)}")
                shutil.copytree(run, copies[-1])
                copying.release()
            return change(*args, **kwargs)

        return call

    for step in range(KEPT + 1):  # the next one removes the first
        RunCheckpoints(run).save(state(step), {"saved": step})
    again = KEPT  # a step that is there already
    for step in (KEPT + 1, again):
        for module, name in (
            (os, "rename"),
            (os, "mkdir"),
            (os, "fsync"),
            (shutil, "rmtree"),
            (os, "unlink"),
        ):
            monkeypatch.setattr(module, name, copied(getattr(module, name)))
        RunCheckpoints(run).save(state(step), {"saved": step}, best=True)
        monkeypatch.undo()
    assert len(copies) > 40
    monkeypatch.setattr(runs, "read_state", lambda _: {})  # checksums say enough, in less time
    for copy in copies:
        checkpoints = RunCheckpoints(copy)
        assert checkpoints.heal() == []
        latest = checkpoints.latest_step()
        assert latest in (KEPT, KEPT + 1)
        assert checkpoints.meta() == {"saved": latest}
        assert all(path.name.isdecimal() for path in (copy / "checkpoints").iterdir())
    monkeypatch.undo()
    latest = RunCheckpoints(copies[-1])
    np.testing.assert_array_equal(latest.restore(state(0)).params["w"], np.full(3, KEPT + 1.0))
    latest.save(state(KEPT + 2), {})
    assert latest.latest_step() == KEPT + 2


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Checkpoints of steps 1 and 2, the last of them the best."""
    path = tmp_path_factory.mktemp("two")
    for step in (1, 2):
        RunCheckpoints(path).save(state(step), {"saved": step}, best=step == 2)
    return path


def test_any_damaged_file_sets_the_checkpoint_aside(two: pathlib.Path, tmp_path: pathlib.Path):
    for number, file in enumerate(files(two / "checkpoints" / "2")):
        workdir = tmp_path / str(number)
        shutil.copytree(two, workdir)
        damaged = workdir / file.relative_to(two)
        data = bytearray(damaged.read_bytes())
        if number % 3 == 0 and data:  # a bit flips
            data[len(data) // 2] ^= 8
            damaged.write_bytes(data)
        elif number % 3 == 1 and data:  # cut
            damaged.write_bytes(data[:-1])
        else:
            damaged.unlink()
        checkpoints = RunCheckpoints(workdir)
        (remark,) = checkpoints.heal()
        assert "checkpoint 2 is damaged: set aside as" in remark and "2.damaged" in remark
        assert checkpoints.latest_step() == 1 and not checkpoints.has_best()
        assert checkpoints.meta() == {"saved": 1}
    np.testing.assert_array_equal(checkpoints.restore(state(0)).params["w"], [1, 1, 1])
    checkpoints.save(state(2), {})  # as the run does when it comes there again
    assert checkpoints.heal() == []


@pytest.mark.parametrize("where", ["params", "opt_state"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_written(where: str, value: float, tmp_path: pathlib.Path):
    checkpoints = RunCheckpoints(tmp_path)
    checkpoints.save(state(1), {})
    with pytest.raises(NotFinite, match="checkpoints are from before"):
        checkpoints.save(state(2)._replace(**{where: {"w": jnp.array([0, value])}}), {})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_a_checkpoint_that_is_not_finite_is_set_aside(
    two: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(two, tmp_path / "run")
    checkpoints = RunCheckpoints(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "is_finite", lambda _: True)
        checkpoints.save(state(3)._replace(params={"w": jnp.full(3, jnp.nan)}), {})
    (remark,) = checkpoints.heal()
    assert "checkpoint 3 is not finite" in remark
    assert checkpoints.latest_step() == 2 and checkpoints.has_best()


def test_the_best_outlives_the_latest(tmp_path: pathlib.Path):
    checkpoints = RunCheckpoints(tmp_path)
    for step in range(1, 8):
        checkpoints.save(state(step), {"saved": step}, best=step == 2)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [2, 5, 6, 7]
    np.testing.assert_array_equal(checkpoints.restore(state(0), best=True).params["w"], [2, 2, 2])
    weights, meta = load_weights(tmp_path)
    np.testing.assert_array_equal(weights["w"], [2, 2, 2])
    assert meta == {"saved": 2}


def test_another_structure_is_no_damage(two: pathlib.Path):
    with pytest.raises(ValueError, match="of another GHN or another version"):
        RunCheckpoints(two).restore(state(0)._replace(params={"w": jnp.zeros(4)}))


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
