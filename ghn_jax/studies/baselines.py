"""SGD baselines of a split: `python -m ghn_jax.studies.baselines --split=test --dataset=cifar10 --data_dir=DIR`."""

import dataclasses
import pathlib
import re
import statistics
from typing import Any

from ghn_jax import pretrained
from ghn_jax.deepnets import sampling
from ghn_jax.deepnets.image_sizes import check_image_size
from ghn_jax.deepnets.lowering import lower
from ghn_jax.evaluation import results
from ghn_jax.evaluation.accuracy import NotFinite, network_accuracy, predict_flat
from ghn_jax.executor import lanes
from ghn_jax.executor.program import Lowered
from ghn_jax.finetuning.recipe import Recipe
from ghn_jax.images.loading import load
from ghn_jax.images.resident import ImageDataset
from ghn_jax.images.sources import StreamedDataset
from ghn_jax.models.templates import deepnets_templates
from ghn_jax.pretrained import TrainedGHN
from ghn_jax.runtime import commands, compilation, devices, outputs
from ghn_jax.runtime.errors import check_range
from ghn_jax.runtime.status import Shown, Status
from ghn_jax.studies.trained import train_network

Dataset = ImageDataset | StreamedDataset
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Training:
    """How architectures are trained: the settings published for CIFAR-10."""

    dataset: str = "digits"
    """digits, cifar10, imagenet, tfds:NAME or folder:PATH."""
    data_dir: pathlib.Path | None = None
    """TFDS directory with the prepared dataset; digits and folder:PATH need none."""
    image_size: int | None = None
    """Height and width that images are resized to and networks are made for, 16 or a multiple of 32 [nearly that of
    the images, 224 at most]."""
    ckpt: str = "ghn2-digits"
    """The GHN to compare with: a bundled one, a .safetensors file, or the work directory of a training run."""
    channels: int | None = None
    """Overrides the channels that the split draws for its architectures."""
    epochs: int = 50
    """Passes over the images; networks are tested after 1, 5, 50 and all of them."""
    steps: int | None = None
    """Number of steps, instead of epochs."""
    batch_size: int = 96
    """Images a step."""
    learning_rate: float = 0.025
    """Of SGD with momentum 0.9; it follows half a cosine down to 0."""
    weight_decay: float = 3e-4
    """Added to the gradient."""
    noise: float = 0.08
    """Standard deviation of the noise in the noisy test, of pixels in 0..1; published for CIFAR-10."""
    seed: int = 0
    """Of the split, drawn parameters and the order of images."""
    results: pathlib.Path | None = None
    """JSON lines, one an architecture; the same command goes on where it stopped [runs/studies/...]."""
    compilation_cache: pathlib.Path | None = None
    """Where compiled programs are kept between runs [~/.cache/ghn_jax/xla]."""

    def recipe(self) -> Recipe:
        """The settings as a recipe; raises ValueError for a number out of range."""
        names = ("batch_size", "epochs", "steps", "learning_rate", "weight_decay", "seed")
        recipe = Recipe(**{name: getattr(self, name) for name in names})
        recipe.check()
        if self.image_size is not None:
            check_image_size(self.image_size)
        check_range("noise", self.noise, 0)
        if self.channels is not None and (self.channels < 16 or self.channels % 16):
            raise ValueError(f"`channels` (={self.channels}) must be a positive multiple of 16")
        return recipe


@dataclasses.dataclass(frozen=True)
class BaselineOptions(Training):
    """Trains architectures of a split by SGD, two at a time on a CPU, beside what a GHN predicts for them."""

    split: str = "test"
    """val, test, wide, deep, dense, bnfree, search or train."""
    num_archs: int | None = None
    """Only the first so many architectures of the split."""


def baselines(options: BaselineOptions) -> None:
    """Trains what is not in the results file yet, and prints the columns of the paper's table.

    Raises ValueError for unknown names, numbers out of range, and results of another command.
    """
    lanes.share_cores()
    recipe = options.recipe()
    outputs.check("results", options.results)
    devices.check()
    compilation.use_persistent_cache(options.compilation_cache)
    sampling.sample(options.split, 0)  # raises for an unknown split
    size = sampling.SPLITS[options.split].size
    if options.num_archs is not None and not 1 <= options.num_archs <= size:
        raise ValueError(f"`num_archs` (={options.num_archs}) must be in 1..{size}, the size of the split")
    indices = list(range(options.num_archs or size))
    path = options.results or default_path(options, f"sgd-{options.split}")
    with Status() as shown:
        done = train_architectures(options, recipe, options.split, indices, path, shown)
    rows = [done[str(index)] for index in indices]
    print(f"mean ± standard deviation (max) of {len(rows)} architectures -> {path}")
    overflowing = [row["arch"] for row in rows if row["ghn_top1"] is None]
    if overflowing:
        print(f"note: not in the GHN's mean, since their logits are not finite: {', '.join(overflowing)}")
    for name, values in columns(rows).items():
        if not values:
            continue
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name:>16}  {statistics.fmean(values):.1f} ± {spread:.1f} ({max(values):.1f})")


def columns(rows: list[Record]) -> dict[str, list[float]]:
    """The columns of the paper's table: accuracies that the GHN predicts, and after each tested epoch."""
    epochs = sorted(int(epoch) for epoch in rows[0]["top1"])
    found = {"GHN": [row["ghn_top1"] for row in rows if row["ghn_top1"] is not None]}
    return found | {f"SGD, {epoch} epochs": [row["top1"][str(epoch)] for row in rows] for epoch in epochs}


def _line(record: Record) -> str:
    """How an architecture did."""
    trained = ", ".join(f"{epoch}: {value:.1f}" for epoch, value in record["top1"].items())
    predicted = "not finite" if record["ghn_top1"] is None else f"{record['ghn_top1']:.1f} %"
    return (
        f"{record['arch']:>8}  {record['parameters']:>10,} parameters  GHN {predicted}  SGD by epoch "
        f"{trained} %  {record['seconds']:.0f} s"
    )


def train_architectures(
    options: Training,
    recipe: Recipe,
    split: str,
    indices: list[int],
    path: pathlib.Path,
    shown: Shown,
) -> dict[str, Record]:
    """Records of the architectures, by index: from the file, or else trained and written there.

    Raises ValueError if the file holds results with other settings.
    """
    shown.doing(f"loading {options.ckpt} and images")
    dataset = load(options.dataset, options.data_dir, options.image_size)
    ghn = pretrained.load(options.ckpt)
    if ghn.config.num_classes != dataset.num_classes:
        raise ValueError(
            f"`ckpt` (={options.ckpt!r}) predicts {ghn.config.num_classes} classes and `dataset` "
            f"(={options.dataset!r}) has {dataset.num_classes}: choose a GHN trained for that many"
        )
    header = recipe.identity() | {
        "ckpt": options.ckpt,
        "weights": results.checksum(ghn.params),
        "dataset": options.dataset,
        "split": split,
        "channels": options.channels,
        "image_size": dataset.image_size,
        "test_noise": options.noise,
    }
    done = results.open_results(path, header, ("arch", "parameters", "ghn_top1"))
    waiting = [index for index in indices if str(index) not in done]
    steps = recipe.num_steps(len(dataset.train))

    def train(place: int) -> Record:
        network = make_network(options, split, waiting[place], dataset)
        try:
            trained = train_network(network, dataset, recipe, noise=options.noise)
        except ValueError as error:
            raise ValueError(f"architecture {waiting[place]} of {split}: {error}") from error
        predicted = predicted_top1(ghn, network, dataset, "test")
        own = {"arch": str(waiting[place]), "parameters": network.num_parameters, "ghn_top1": predicted}
        record = own | trained.record()
        results.append(path, record)  # now, though one before it may train for long
        done[record["arch"]] = record
        return record

    shown.say(
        f"training {len(waiting)} of {len(indices)} architectures of {split} for {steps} steps each -> {path}"
    )
    shown.doing(
        lambda: f"{sum(str(index) in done for index in indices)} of {len(indices)} architectures trained"
    )
    for record in lanes.run_in_lanes(train, len(waiting)):
        shown.say(_line(record))
    return done


def make_network(options: Training, split: str, index: int, dataset: Dataset) -> Lowered:
    """Architecture number `index` of a split, lowered for these images."""
    arch = sampling.sample(split, index, options.seed, dataset.image_size)
    arch = dataclasses.replace(arch, C=options.channels or arch.C)
    return lower(arch, dataset.num_classes, dataset.image_size)


def predicted_top1(
    ghn: TrainedGHN, network: Lowered, dataset: Dataset, split: str, num_images: int | None = None
) -> float | None:
    """Accuracy with the parameters that a GHN predicts; None if logits are not finite, as of networks without norms."""
    flat = predict_flat(ghn.config, ghn.params, network, deepnets_templates(ghn.config, dataset.image_size))
    try:
        return network_accuracy(network, flat, dataset, split, num_images).top1
    except NotFinite:
        return None


def default_path(options: Training, name: str) -> pathlib.Path:
    """Where results go unless told otherwise."""
    part = f"-{options.image_size}px" if options.image_size else ""
    part += f"-C{options.channels}" if options.channels else ""
    dataset = re.sub(r"\W+", "_", options.dataset)
    return pathlib.Path("runs", "studies", f"{name}-{dataset}{part}-seed{options.seed}.jsonl")


if __name__ == "__main__":
    commands.run(BaselineOptions, baselines)
