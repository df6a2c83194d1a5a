"""Meta-trains the public PyTorch GHN-2 on the architectures and images of a run of `train.py`, to compare accuracies.

    python -m benchmarks.meta_training --public CHECKOUT --torch_python PYTHON --data_dir DIR --steps 283

CHECKOUT is a copy of github.com/facebookresearch/ppuda, PYTHON an interpreter with torch, networkx, h5py and einops.
The same run of this project:

    python train.py --dataset=cifar10 --data_dir=DIR --steps=283 --val_archs=0 --workdir=RUN
    python evaluate.py --ckpt=RUN --data_dir=DIR --split=val --channels=32 --num_archs=20

Architectures, images, their augmentation, and the networks tested are then the same; initial weights and dropout are
drawn by each side. (On current PyTorch the public graphs lack some attention and squeeze-excitation nodes.) Published
settings; 283 steps and the evaluation took 50 minutes on two cores.
"""

import dataclasses
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.public import run
from ghn_jax.deepnets import sampling
from ghn_jax.evaluation.accuracy import summarize
from ghn_jax.images import resident
from ghn_jax.runtime import commands
from ghn_jax.training import feed

_BATCH, _META_BATCH, _CHANNELS = 64, 8, 32


def main(
    public: pathlib.Path,
    data_dir: str,
    torch_python: str = "python",
    steps: int = 283,
    num_archs: int = 20,
    seed: int = 0,
) -> None:
    """Prints the accuracy of the public GHN on unseen architectures, and its losses on the way.

    Args:
      public: a copy of the public code.
      data_dir: TFDS directory with CIFAR-10.
      torch_python: an interpreter with PyTorch.
      steps: training steps of 8 architectures and 64 images.
      num_archs: architectures of the split val to test, with 32 channels.
      seed: that of `train.py`; the initial weights of the public GHN depend on it too.
    """
    dataset = resident.load("cifar10", data_dir)
    batches = [sampling.meta_batch(seed, step, _META_BATCH).architectures for step in range(steps)]
    tested = [dataclasses.replace(sampling.sample("val", i), C=_CHANNELS) for i in range(num_archs)]
    with tempfile.TemporaryDirectory() as folder:
        _write_images(pathlib.Path(folder), dataset, steps, seed)
        outcome = run(
            "meta_training.py",
            public,
            torch_python,
            meta_batches=[[arch.to_dict() for arch in batch] for batch in batches],
            networks=[arch.to_dict() for arch in tested],
            folder=folder,
            seed=seed,
        )
    for index, top1 in enumerate(outcome["top1"]):
        print(f"val {index}: {top1:.2f} %")
    losses, mean = outcome["losses"], summarize(outcome["top1"], range(num_archs))
    print(f"loss of the last 20 steps: {np.median(losses[-20:]):.3f} (median)")
    print(
        f"top-1 on {num_archs} unseen architectures, trained for {steps} steps on cifar10: {mean.mean:.1f} ± "
        f"{mean.standard_error:.1f} %, at most {mean.best:.1f} %; {outcome['seconds']:.0f} s"
    )


def _write_images(folder: pathlib.Path, dataset: resident.ImageDataset, steps: int, seed: int) -> None:
    """The training batches that `train.py` draws, and the test images, channels first."""
    _, image_key, _ = jax.random.split(jax.random.key(seed), 3)
    draw = feed.open_feed(dataset, _BATCH, image_key, seed, 0, {}, 0)
    shape = (steps, _BATCH, 3, dataset.image_size, dataset.image_size)
    batches = np.lib.format.open_memmap(folder / "images.npy", "w+", np.float32, shape)
    labels = np.empty((steps, _BATCH), np.int64)
    for step in range(steps):
        x, labels[step] = draw(step)
        batches[step] = np.moveaxis(np.asarray(x), -1, 1)
    batches.flush()
    np.save(folder / "labels.npy", labels)
    test = resident.normalize(jnp.asarray(dataset.test.images), dataset.mean, dataset.std)
    np.save(folder / "test_images.npy", np.ascontiguousarray(np.moveaxis(np.asarray(test), -1, 1)))
    np.save(folder / "test_labels.npy", dataset.test.labels)


if __name__ == "__main__":
    with commands.errors_as_lines():
        tyro.cli(main)
