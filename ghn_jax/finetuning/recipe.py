"""How a network is trained: the published settings of the SGD baselines, and what may be changed of them.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021, Section 5 and its code,
    experiments/sgd/train_net.py.
"""

import dataclasses
from typing import Any

from ghn_jax.runtime.errors import check_range, unknown_name
from ghn_jax.runtime.extras import extra

with extra("train"):
    import optax

OPTIMIZERS = ("sgd", "adamw")
PRECISIONS = ("float32", "bfloat16")

FRACTIONS = (0.0, 0.125, 0.25, 0.5, 1.0)
"""Parts of the steps after which a network is always tested."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of a training run. Defaults are those published for CIFAR-10 [1], but the rate falls at every step."""

    optimizer: str = "sgd"
    """sgd (with momentum; weight decay is added to the gradient) or adamw."""
    learning_rate: float = 0.025
    """At its highest; it follows half a cosine down to 0."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 3e-4
    """For 100 images a class the public code takes 1e-3."""
    label_smoothing: float = 0.0
    """Share of each target spread over all classes."""
    warmup_steps: int = 0
    """Steps in which the learning rate grows from 0."""
    clip: float = 5.0
    """Largest global norm of the gradient."""
    batch_size: int | None = None
    """Images a step [96, or all of them if there are fewer]."""
    epochs: int = 50
    """Passes over the images."""
    steps: int | None = None
    """Number of steps, instead of epochs."""
    precision: str = "float32"
    """What the network computes in: float32 or bfloat16; parameters and the loss are float32 all the same."""
    noise: float = 0.0
    """Gaussian noise on predicted weights, which tells repeated channels apart: a multiple of the standard deviation of
    the correlations between them; the public code takes 1e-5 to 3e-5."""
    orthogonal: bool = False
    """Whether predicted weights are made orthogonal."""
    seed: int = 0
    """Of drawn parameters, the order of images, augmentation and dropout."""
    evaluate_at: tuple[int, ...] = ()
    """Steps after which the network is tested, beside 0, 1/8, 1/4, 1/2 and all of them."""

    def check(self) -> None:
        """Raises ValueError for an unknown name and for a number out of range."""
        if self.optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer", self.optimizer, OPTIMIZERS)
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        for name in ("batch_size", "epochs", "steps"):
            check_range(name, getattr(self, name), 1)
        for name in ("learning_rate", "clip"):
            check_range(name, getattr(self, name), 0, above=True)
        for name in ("weight_decay", "warmup_steps", "noise", "seed", "evaluate_at"):
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else (values,):
                check_range(name, value, 0)
        if self.optimizer != "sgd" and self.momentum != Recipe.momentum:
            raise ValueError(f"`momentum` (={self.momentum}) has no effect with --optimizer={self.optimizer}")
        for name in ("momentum", "label_smoothing"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"`{name}` (={getattr(self, name)}) must be in 0..1, below 1")

    def identity(self) -> dict[str, Any]:
        """What two runs must share for one to go on from the other, as JSON values."""
        names = {field.name for field in dataclasses.fields(Recipe)}
        return {name: value for name, value in _json(self).items() if name in names}

    def num_steps(self, num_images: int) -> int:
        """Steps on so many training images."""
        return self.steps or self.epochs * (num_images // self.images_per_step(num_images))

    def images_per_step(self, num_images: int) -> int:
        """The batch size; raises ValueError if it exceeds the number of training images."""
        if self.batch_size is not None and self.batch_size > num_images:
            raise ValueError(
                f"`batch_size` (={self.batch_size}) exceeds the {num_images} training images: lower it"
            )
        return self.batch_size or min(96, num_images)

    def evaluation_steps(self, num_steps: int) -> set[int]:
        """After which steps to test the network."""
        late = [step for step in self.evaluate_at if not 0 <= step <= num_steps]
        if late:
            raise ValueError(f"`evaluate_at` (={late[0]}) is outside the run: it has {num_steps} steps")
        return {round(part * num_steps) for part in FRACTIONS} | set(self.evaluate_at)


def _json(recipe: Recipe) -> dict[str, Any]:
    values = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def learning_rate(recipe: Recipe, num_steps: int) -> optax.Schedule:
    """A linear warm-up, then half a cosine."""
    warmup = recipe.warmup_steps
    if warmup >= num_steps:
        raise ValueError(f"`warmup_steps` (={warmup}) must be fewer than the {num_steps} steps of the run")
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else recipe.learning_rate, recipe.learning_rate, warmup, num_steps
    )


def make_optimizer(recipe: Recipe, num_steps: int) -> optax.GradientTransformation:
    """The recipe's optimiser, after clipping by global norm."""
    rate = learning_rate(recipe, num_steps)
    clip = optax.clip_by_global_norm(recipe.clip)
    if recipe.optimizer == "adamw":
        return optax.chain(clip, optax.adamw(rate, weight_decay=recipe.weight_decay))
    return optax.chain(
        clip, optax.add_decayed_weights(recipe.weight_decay), optax.sgd(rate, momentum=recipe.momentum)
    )
