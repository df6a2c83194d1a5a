"""Runs commands one after another, each in a fork of this process, in which everything is imported.

Lines on stdin are commands of ghn_jax, or of a shell; for each a line of JSON with its exit code and what it said.
"""

import importlib
import json
import os
import pathlib
import runpy
import shlex
import subprocess
import sys
import tempfile
import traceback
import warnings

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
ENTRIES = {"ghn-train": "train", "ghn-evaluate": "evaluate", "ghn-finetune": "finetune"}
IMPORTED = [
    *(
        "tyro",
        "optax",
        "orbax.checkpoint",
        "grain",
        "sklearn.datasets",
        "sklearn.svm",
        "PIL.Image",
        "h5py",
        "simplejpeg",
    ),
    *("ghn_jax.training.loop", "ghn_jax.evaluation.report", "ghn_jax.finetuning.command"),
    *(
        "ghn_jax.studies.search",
        "ghn_jax.studies.properties",
        "ghn_jax.plots.figures",
        "ghn_jax.pretrained.__main__",
    ),
    *("ghn_jax.deepnets.stored", "datasets.images", "datasets.imagenet", "datasets.deepnets1m"),
    *("benchmarks.made_up_run", "ghn_jax.__main__"),
]


def run(words: list[str]) -> None:
    """The command, in this process."""
    if words[0] == "ghn-train":
        importlib.import_module("benchmarks.made_up_run").install()
    sys.argv = words if words[0] in ENTRIES else words[2:]
    if words[0] in ENTRIES:
        getattr(importlib.import_module("ghn_jax.__main__"), ENTRIES[words[0]])()
    else:
        assert words[:2] == ["python", "-m"], words
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)


def in_fork(words: list[str]) -> tuple[int, str]:
    """Exit code of the command, and what it said."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            os.setsid()
            for descriptor in (1, 2):
                os.dup2(said.fileno(), descriptor)
            while "=" in words[0]:
                name, _, value = words.pop(0).partition("=")
                os.environ[name] = value
            code = 0
            try:
                run(words)
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            except BaseException:
                traceback.print_exc()
                code = 99
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        try:
            os.killpg(child, 9)
            left = "\na process was left over"
        except ProcessLookupError:
            left = ""
        said.seek(0)
        return code, said.read().decode() + left


def main() -> None:
    """Answers lines of stdin."""
    warnings.simplefilter("ignore")
    sys.argv = ["commands"]
    for module in IMPORTED:
        importlib.import_module(module)
    for line in sys.stdin:
        words = shlex.split(line, comments=False)
        first = next(word for word in words if "=" not in word)
        if first in ENTRIES or words[:2] == ["python", "-m"]:
            code, said = in_fork(words)
        else:
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
            code, said = done.returncode, done.stdout + done.stderr
        print(json.dumps([code, said]), flush=True)


if __name__ == "__main__":
    main()
