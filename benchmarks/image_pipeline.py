"""Training images made a second on one core: this project's pipeline against Pillow alone and torchvision's way.

Every way ends with uint8 pixels, 224 x 224: a random resized crop, mirrored or not, with jittered colours. Normalising
them is left to the device; torchvision, which does it on the host, would take longer than stated. The images are those
of the training split as stored, and again enlarged to what ImageNet has on average if they are smaller.

Command line: `python -m benchmarks.image_pipeline --data_dir=DIR [--dataset=imagenet] [--num=256] [--rounds=5]`.
"""

import dataclasses
import functools
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import grain
import numpy as np
import tyro
from PIL import Image, ImageEnhance

from ghn_jax.images import decode
from ghn_jax.images.examples import Example, Subset
from ghn_jax.images.sources import open_dataset
from ghn_jax.images.stream import Batch, training_batches

NEEDED = 3000
"""Images a second that keep an accelerator busy, to be on the safe side."""

IMAGENET_SIDE = 375
"""Shorter side of most ImageNet images."""

SIZE = 224
BATCH_SIZE = 32


def measure(data_dir: Path, dataset: str = "imagenet", num: int = 256, rounds: int = 5) -> None:
    """Prints a table of rates, each the best of `rounds` that alternate between the ways.

    Args:
      data_dir: TFDS directory.
      dataset: name of the set.
      num: images per round.
    """
    opened = open_dataset(dataset, data_dir, image_size=SIZE)
    num = min(num, len(opened.train)) // BATCH_SIZE * BATCH_SIZE
    stored = [opened.train[index] for index in range(num)]
    print("| images | way | images/s per core | cores for 3,000 images/s |\n|---|---|---|---|")
    for name, examples in {
        "as stored": stored,
        "enlarged": [_enlarge(example) for example in stored],
    }.items():
        kilobytes = np.mean([len(example.data) for example in examples]) / 1000
        height, width = np.mean([decode.dimensions(example.data) for example in examples], axis=0)
        # As stored, the stream reads from the disk; nothing of the other ways does.
        train = Subset(opened.train, np.arange(num)) if name == "as stored" else _InMemory(examples)
        batches = training_batches(dataclasses.replace(opened, train=train), BATCH_SIZE, seed=0)
        ways: dict[str, Callable[[], None]] = {
            "**this pipeline**, reading and batching included": functools.partial(
                _make_batches, batches, num
            ),
            "this pipeline, an image alone": functools.partial(_each, examples, _crop),
            "Pillow alone, decoding at a reduced size too": functools.partial(_each, examples, _pillow_crop),
            "torchvision's way": functools.partial(_each, examples, _torchvision_crop),
            "(decoding to full size alone, simplejpeg)": functools.partial(
                _each, examples, _simplejpeg_pixels
            ),
            "(decoding to full size alone, Pillow)": functools.partial(_each, examples, _pillow_pixels),
        }
        best = dict.fromkeys(ways, 0.0)
        for _ in range(rounds):
            for way, run in ways.items():
                start = time.process_time()
                run()
                best[way] = max(best[way], num / (time.process_time() - start))
        for way, rate in best.items():
            print(
                f"| {name}: {width:.0f} x {height:.0f}, {kilobytes:.0f} kB | {way} | {rate:.0f} | {NEEDED / rate:.1f} |"
            )


def _make_batches(batches: grain.MapDataset[Batch], num: int) -> None:
    for index in range(num // BATCH_SIZE):
        batches[index]


def _each(examples: Sequence[Example], make: Callable[[bytes, np.random.Generator], np.ndarray]) -> None:
    for index, example in enumerate(examples):
        make(example.data, np.random.default_rng(index))


def _crop(data: bytes, rng: np.random.Generator) -> np.ndarray:
    return decode.training_crop(data, SIZE, rng)


def _pillow_crop(data: bytes, rng: np.random.Generator) -> np.ndarray:
    """Pillow at its best: decoded at the smallest size with enough detail, cut and resized in one go."""
    with Image.open(io.BytesIO(data)) as image:
        full_width, full_height = image.size
        top, left, height, width = decode.random_box(full_height, full_width, rng)
        image.draft("RGB", (SIZE * full_width // width, SIZE * full_height // height))
        x, y = image.width / full_width, image.height / full_height
        box = (left * x, top * y, (left + width) * x, (top + height) * y)
        part = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR, box)
    return _finish(part, rng)


def _torchvision_crop(data: bytes, rng: np.random.Generator) -> np.ndarray:
    """Decoded at full size, then cut, then resized."""
    with Image.open(io.BytesIO(data)) as file:
        image = file.convert("RGB")
    top, left, height, width = decode.random_box(image.height, image.width, rng)
    part = image.crop((left, top, left + width, top + height))
    return _finish(part.resize((SIZE, SIZE), Image.Resampling.BILINEAR), rng)


def _finish(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Mirrors an image and jitters its colours, by the operations of Pillow that torchvision uses."""
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    factors = rng.uniform(0.6, 1.4, 3)
    shift = int(rng.uniform(-0.2, 0.2) * 255)
    for change in rng.permutation(4):
        if change == 3:
            hue, saturation, value = image.convert("HSV").split()
            hue = Image.fromarray(np.asarray(hue) + np.uint8(shift % 256))
            image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
        else:
            enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[change]
            image = enhance(image).enhance(factors[change])
    return np.asarray(image)


def _simplejpeg_pixels(data: bytes, rng: np.random.Generator) -> np.ndarray:
    return decode.decode(data)


def _pillow_pixels(data: bytes, rng: np.random.Generator) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


class _InMemory:
    """Images that are read already, so that each way is given the same."""

    def __init__(self, examples: Sequence[Example]):
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int, /) -> Example:
        return self._examples[index]


def _enlarge(example: Example) -> Example:
    """The image with a shorter side of `IMAGENET_SIDE`, lightly compressed: to some 77 kB, where ImageNet has 110."""
    image = Image.fromarray(decode.decode(example.data))
    scale = IMAGENET_SIDE / min(image.size)
    file = io.BytesIO()
    enlarged = image.resize(
        (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
    )
    enlarged.save(file, "JPEG", quality=96, subsampling="4:2:0")
    return Example(file.getvalue(), example.label)


if __name__ == "__main__":
    tyro.cli(measure)
