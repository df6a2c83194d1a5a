"""A step does not depend on how the meta-batch is spread over devices and processes; and what happens when one dies."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from commands_in_forks import ROOT, Command, Forks

from ghn_jax.training.checkpoint import RunCheckpoints

SCRIPT = pathlib.Path(__file__).with_name("one_meta_step.py")


def start(forks: Forks, *arguments: str | int | pathlib.Path) -> Command:
    return Command(forks, ("python", *map(str, arguments)))


def finish(*processes: Command) -> None:
    for process in processes:
        done = process.wait()
        assert done.returncode == 0, done.stderr


def free_port() -> int:
    """A port that is free, and so is the next one."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port = first.getsockname()[1]
            try:
                socket.create_server(("127.0.0.1", port + 1)).close()
            except OSError:
                continue
            return port


@pytest.fixture(scope="module")
def one_device(forks: Forks, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("one") / "step.npz"
    finish(start(forks, SCRIPT, path, 1))
    return np.load(path)


def assert_same_step(path: pathlib.Path, expected, devices: int) -> None:
    step = np.load(path)
    assert step["devices"] == devices
    assert step["gradient"].dtype == np.float64
    assert step["loss"] == pytest.approx(expected["loss"], rel=1e-6)  # losses are reported in float32
    difference = np.linalg.norm(step["gradient"] - expected["gradient"])
    assert difference < 1e-9 * np.linalg.norm(expected["gradient"])


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_devices_take_the_same_step_as_one(forks: Forks, devices: int, one_device, tmp_path: pathlib.Path):
    path = tmp_path / "step.npz"
    finish(start(forks, SCRIPT, path, devices))
    assert_same_step(path, one_device, devices)


def test_functions_of_the_ghn_are_compiled_once_each(one_device):
    """Before a step its six are to be compiled, although eight networks need them; then none; for larger graphs the two
    that take them."""
    assert one_device["compile_left"].tolist() == [6, 0, 2]


def test_two_processes_take_the_same_step_as_one_device(one_device, tmp_path: pathlib.Path):
    """They leave each other as a process does that ends by itself, which a fork does not."""
    path, address = tmp_path / "step.npz", f"127.0.0.1:{free_port()}"
    commands = ([sys.executable, SCRIPT, path, "2", address, "2", str(i)] for i in (0, 1))
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True) for words in commands]
    for process in processes:
        _, errors = process.communicate(timeout=900)
        assert process.returncode == 0, errors
    assert_same_step(path, one_device, devices=4)


TRAIN = (
    "-m",
    "benchmarks.small_run",
    "--meta_batch_size=2",
    "--batch_size=8",
    "--recipe=published",  # whose schedule does not depend on the number of steps
    "--steps=1000",
    "--checkpoint_every=1",
    "--val_archs=0",
)


def test_the_others_end_when_a_process_dies_and_one_goes_on(forks: Forks, tmp_path: pathlib.Path):
    address = f"--coordinator=127.0.0.1:{free_port()}"
    common = (*TRAIN, f"--workdir={tmp_path}", "--log_every=1")
    first, second = (start(forks, *common, address, "--num_processes=2", f"--process_id={i}") for i in (0, 1))
    while not (tmp_path / "checkpoints" / "1").exists():
        assert first.runs() and second.runs()
        time.sleep(0.1)
    second.kill()
    ended = first.wait()
    assert ended.returncode == 2
    assert "process 1 of 2 ended before the run was over" in ended.stderr
    last = RunCheckpoints(tmp_path).latest_step()
    assert last
    alone = forks.run("python", *common, f"--steps={last + 1}")
    assert alone.returncode == 0, alone.stderr
    for part in ("resuming", "1 device(s)", f"done: {last + 1} steps"):
        assert part in alone.stdout


def test_a_coordinator_that_does_not_answer(forks: Forks):
    assert_refused(forks, "does not answer", f"127.0.0.1:{free_port()}", 2, 1)


def test_a_process_that_does_not_come(forks: Forks):
    assert_refused(forks, "no word from process 1, 2", f"127.0.0.1:{free_port()}", 3, 0)


def test_no_cluster_to_ask(forks: Forks):
    assert_refused(forks, "finds no SLURM", "auto")


@pytest.mark.parametrize(
    ("address", "num_processes", "process_id", "message"),
    [
        ("here", 2, 0, "`coordinator` (='here') is no HOST:PORT"),
        ("here:80", 2, 2, "`process_id` (=2) must be in 0..num_processes-1"),
        (None, 2, 0, "need `coordinator`"),
    ],
)
def test_bad_arguments(address, num_processes, process_id, message):
    from ghn_jax.training import processes

    with pytest.raises(ValueError) as error, processes.joined(address, num_processes, process_id):
        pass
    assert message in str(error.value)


def assert_refused(forks: Forks, message: str, *who: str | int) -> None:
    """`joined` gives up after a second."""
    code = "import sys; from ghn_jax.training import processes\n"
    code += "with processes.joined(sys.argv[1], *map(int, sys.argv[2:] or [0, 0]), wait=1.0): pass"
    done = start(forks, "-c", code, *who).wait()
    assert done.returncode == 1
    assert "ValueError" in done.stderr and message in done.stderr
