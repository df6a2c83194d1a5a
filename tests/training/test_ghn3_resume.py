"""A meta-training run of GHN-3, killed and resumed."""

import json
import pathlib
import time

from commands_in_forks import Command, Forks

TRAIN = """
import sys
sys.path.insert(0, "tests/training")
from test_ghn3_step import ARCH, CONFIGS, used_templates
from ghn_jax.__main__ import train
from ghn_jax.deepnets.lowering import lower
from ghn_jax.models import config
from ghn_jax.training import loop
config._FAMILIES["ghn3-t"] = CONFIGS["ghn3-t"]
loop.deepnets_templates = used_templates
loop.sampling.meta_batch = lambda *_, **__: loop.sampling.MetaBatch((0,), (ARCH,), (lower(ARCH, 10, 16),))
train()
"""
"""A small GHN and one small network, to compile and run in seconds; all else is the real thing."""

OPTIONS = (
    "--preset=ghn3-t",
    "--meta_batch_size=1",
    "--batch_size=16",
    "--steps=3",
    "--checkpoint_every=1",
    "--val_archs=0",
)


def start(forks: Forks, workdir: pathlib.Path) -> Command:
    return Command(forks, ("python", "-c", TRAIN, *OPTIONS, f"--workdir={workdir}"))


def finish(run: Command) -> str:
    done = run.wait()
    assert done.returncode == 0, done.stderr
    return done.stdout


def metrics(workdir: pathlib.Path) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{k: json.loads(line)[k] for k in ("step", "loss", "top1", "gradient_norm")} for line in lines]


def test_a_killed_run_of_ghn3_resumes_to_the_same_metrics(forks: Forks, tmp_path: pathlib.Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(forks, whole))
    run, file = start(forks, killed), killed / "metrics.jsonl"
    while run.runs() and not (file.exists() and file.read_text().count("\n") == 2):
        time.sleep(0.05)
    run.kill()
    assert "resuming" in finish(start(forks, killed))
    assert metrics(killed) == metrics(whole)
    assert len(metrics(whole)) == 3
