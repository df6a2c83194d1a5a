"""Loads and uses a file as large as the published GHN-3-XL.

    python -m benchmarks.published_files --preset=ghn3-xl --path=xl.pt

Writes a file of deterministic weights in the public format if there is none, then, in a process of its own, prints the
time that loading takes and its peak memory, and the time to predict a ResNet-50 and a ViT-B, first and again.

    python -m benchmarks.published_files --path=xl.pt --ghn3 CHECKOUT --public CHECKOUT --torch_python PYTHON

then does the same with the public code (github.com/SamsungSAILMontreal/ghn3 and .../facebookresearch/ppuda) in an
interpreter with torch, torchvision, joblib, huggingface_hub, networkx and einops.
"""

import json
import pathlib
import subprocess
import sys
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import ghn_jax
from ghn_jax.models.config import preset
from ghn_jax.pretrained import public_names
from ghn_jax.pretrained.files import public_config
from ghn_jax.pretrained.torch_writer import write_torch_file

MODELS = ("resnet50", "vit_b_16")


def main(
    path: pathlib.Path,
    preset: str = "ghn3-xl",
    ghn3: pathlib.Path | None = None,
    public: pathlib.Path | None = None,
    torch_python: str | None = None,
    measure: bool = False,
) -> None:
    """Measures a file.

    Args:
      path: of the file; it is written if it does not exist.
      preset: configuration of the GHN, for ImageNet.
      ghn3: checkout of the public code of GHN-3.
      public: checkout of ppuda, which that builds on.
      torch_python: interpreter with PyTorch.
      measure: only measures, in this process.
    """
    if not measure:
        if not path.exists():
            write(path, preset)
        subprocess.run(
            [sys.executable, "-m", "benchmarks.published_files", f"--path={path}", "--measure"], check=True
        )
        if ghn3 and public and torch_python:
            job = {"ghn3": str(ghn3), "public": str(public), "path": str(path.absolute()), "models": MODELS}
            script = pathlib.Path(__file__).parent / "public" / "published_files.py"
            subprocess.run(
                [torch_python, "-W", "ignore", script], input=json.dumps(job), text=True, check=True
            )
        return
    before = peak()
    start, worked = time.perf_counter(), time.process_time()
    ghn = ghn_jax.load(path)
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(ghn.params))
    print(f"load: {weights / 1e9:.2f} GB of weights in {seconds:.1f} s, {worked:.1f} s of them at work")
    share = (peak() - before) / weights
    print(f"peak memory {share:.2f} x the weights, above the {before / 1e9:.2f} GB of libraries", flush=True)
    images = jnp.zeros((1, 224, 224, 3))
    for name in MODELS:
        for which in ("first", "again"):
            with warnings.catch_warnings():  # class tokens keep their own initialisation
                warnings.simplefilter("ignore")
                report = ghn_jax.predict_parameters(ghn_jax.target(name), images, ghn).report
            parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in report.seconds.items())
            print(f"{name}, {which}: {sum(report.seconds.values()):.2f} s ({parts})", flush=True)
    print(f"peak memory {peak() / 1e9:.2f} GB")


def write(path: pathlib.Path, name: str) -> None:
    """Writes uniform weights of a sensible size under the public names."""
    config, rng = preset(name, 1000, 224), np.random.default_rng(0)
    shapes = public_names.state_dict_shapes(config)
    state = {
        key: (rng.random(shape, np.float32) - 0.5) / np.float32(np.sqrt(shape[-1]))
        for key, shape in shapes.items()
    }
    write_torch_file(path, state, public_config(config))


def peak() -> int:
    """Largest resident memory of this process so far, in bytes (`ru_maxrss` would count what started it)."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    tyro.cli(main)
