"""Runs drivers of the public PyTorch code, in an interpreter of its own."""

import json
import pathlib
import subprocess
from typing import Any


def run(driver: str, public: pathlib.Path, torch_python: str, **job: Any) -> Any:
    """What a driver of this folder prints last, given a job and a copy of github.com/facebookresearch/ppuda.

    Its progress and its warnings are shown. Ends the benchmark if it fails.
    """
    script = pathlib.Path(__file__).with_name(driver)
    text = json.dumps({"public": str(public), **job})
    done = subprocess.run([torch_python, str(script)], input=text, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"`public` (={str(public)!r}): {driver} failed, as it says above")
    return json.loads(done.stdout.strip().splitlines()[-1])
