"""Trains a small ResNet on digits, here by `ghn_jax.finetune` and in PyTorch: same settings, several seeds each.

    python -m benchmarks.public.torch_training

Needs torch. Initial parameters are drawn from the same distributions, and batches are in an order of each library's
own; so single runs differ, and means are compared. Exit code 1 if they differ by more than the standard deviation over
seeds.
"""

import math
import statistics
import sys
import time

import flax.linen as nn
import numpy as np
import torch
import tyro

import ghn_jax
from ghn_jax.finetuning.recipe import Recipe
from ghn_jax.images.loading import load
from ghn_jax.images.resident import ImageDataset, normalize
from ghn_jax.runtime import compilation

WIDTHS = ((16, 1), (32, 2), (64, 2))
"""Channels and stride of each block."""
MOMENTUM = 0.9
"""With which running statistics keep their value."""

Images = tuple[np.ndarray, np.ndarray]


def main(seeds: int = 3, epochs: int = 15, image_size: int = 16) -> None:
    """Prints a table, and whether the means agree.

    Args:
      seeds: runs of each library.
      epochs: passes over the 1,294 training images.
      image_size: height and width of images.
    """
    compilation.use_persistent_cache()
    dataset = load("digits", image_size=image_size)
    assert isinstance(dataset, ImageDataset)
    train, test = (
        (
            np.asarray(normalize(part.images, dataset.mean, dataset.std, image_size)),
            np.asarray(part.labels, np.int64),
        )
        for part in (dataset.train, dataset.test)
    )
    print(f"top-1 on {len(test[1])} test images, %, after {epochs} epochs of {len(train[1])} images")
    print("| library | " + " | ".join(f"seed {seed}" for seed in range(seeds)) + " | mean ± deviation | s |")
    print("|" + "---|" * (seeds + 3))
    results = {}
    for name, run in (("ghn_jax.finetune", here), ("torch", in_torch)):
        start = time.monotonic()
        values = [run(train, test, Recipe(epochs=epochs, seed=seed)) for seed in range(seeds)]
        results[name] = values
        cells = " | ".join(f"{value:.2f}" for value in values)
        print(
            f"| {name} | {cells} | {statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f} "
            f"| {time.monotonic() - start:.0f} |",
            flush=True,
        )
    apart = abs(statistics.fmean(results["torch"]) - statistics.fmean(results["ghn_jax.finetune"]))
    spread = max(statistics.stdev(values) for values in results.values())
    print(f"means differ by {apart:.2f}, the larger standard deviation is {spread:.2f}")
    sys.exit(apart > spread)


# -- here -----------------------------------------------------------------------------------------------------------


class _Block(nn.Module):
    features: int
    stride: int

    @nn.compact
    def __call__(self, x, train: bool):
        def conv(x, size: int, stride: int):
            pad = size // 2
            x = nn.Conv(
                self.features, (size, size), (stride, stride), ((pad, pad), (pad, pad)), use_bias=False
            )(x)
            return nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM)(x)

        y = conv(nn.relu(conv(x, 3, self.stride)), 3, 1)
        return nn.relu(y + (x if x.shape == y.shape else conv(x, 1, self.stride)))


class _Network(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(WIDTHS[0][0], (3, 3), padding=((1, 1), (1, 1)), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM)(x))
        for features, stride in WIDTHS:
            x = _Block(features, stride)(x, train)
        return nn.Dense(10)(x.mean((1, 2)))


def here(train: Images, test: Images, recipe: Recipe) -> float:
    """Accuracy on test images after training by `ghn_jax.finetune`."""
    return ghn_jax.finetune(_Network(), train, test, recipe=recipe).tested[-1].top1


# -- in PyTorch -----------------------------------------------------------------------------------------------------


class _TorchBlock(torch.nn.Module):
    def __init__(self, before: int, features: int, stride: int):
        super().__init__()
        self.first, self.second = (
            _torch_conv(before, features, 3, stride),
            _torch_conv(features, features, 3, 1),
        )
        same = before == features and stride == 1
        self.shortcut = torch.nn.Identity() if same else _torch_conv(before, features, 1, stride)

    def forward(self, x):
        return (self.second(self.first(x).relu()) + self.shortcut(x)).relu()


def _torch_conv(before: int, features: int, size: int, stride: int) -> torch.nn.Module:
    conv = torch.nn.Conv2d(before, features, size, stride, size // 2, bias=False)
    return torch.nn.Sequential(conv, torch.nn.BatchNorm2d(features, momentum=1 - MOMENTUM))


def _torch_network() -> torch.nn.Module:
    first = WIDTHS[0][0]
    layers = [_torch_conv(3, first, 3, 1), torch.nn.ReLU()]
    for before, (features, stride) in zip((first, *(width for width, _ in WIDTHS)), WIDTHS, strict=False):
        layers.append(_TorchBlock(before, features, stride))
    pool = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    network = torch.nn.Sequential(*layers, *pool, torch.nn.Linear(WIDTHS[-1][0], 10))
    for name, parameter in network.named_parameters():  # as Flax: LeCun's normal distribution, biases 0
        if parameter.ndim > 1:
            deviation = (
                1 / math.sqrt(parameter[0].numel()) / 0.87962566103423978
            )  # of a normal one, before it is cut
            torch.nn.init.trunc_normal_(parameter, 0.0, deviation, -2 * deviation, 2 * deviation)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    return network


def in_torch(train: Images, test: Images, recipe: Recipe) -> float:
    """Accuracy on test images after training in PyTorch."""
    torch.manual_seed(recipe.seed)
    network = _torch_network()
    images, test_images = (torch.from_numpy(part[0].transpose(0, 3, 1, 2).copy()) for part in (train, test))
    labels, test_labels = (torch.from_numpy(part[1]) for part in (train, test))
    size, last = recipe.images_per_step(len(labels)), recipe.num_steps(len(labels))
    optimizer = torch.optim.SGD(
        network.parameters(), recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, last)
    network.train()
    for step in range(last):
        place = step % (len(labels) // size)
        if place == 0:
            order = torch.randperm(len(labels))
        chosen = order[place * size : (place + 1) * size]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images[chosen]), labels[chosen]).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
        optimizer.step()
        schedule.step()
    network.eval()
    with torch.no_grad():
        return 100.0 * float((network(test_images).argmax(1) == test_labels).float().mean())


if __name__ == "__main__":
    tyro.cli(main)
