"""Recipes: named ways to meta-train a GHN.

`published` is the recipe of GHN-2 and `ghn3` that of GHN-3, to the letter. `efficient` is for runs of few networks;
docs/recipes.md says what each of its parts buys, and what else was tried.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021, Section 5.
[2] Knyazev et al., Can We Scale Transformers to Predict Parameters of Diverse ImageNet Models?, ICML 2023.
[3] Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024.
"""

import dataclasses
from typing import Any, Literal

import jax

from ghn_jax.runtime.errors import unknown_name
from ghn_jax.runtime.extras import extra

with extra("train"):
    import optax
    import optax.contrib


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a GHN is meta-trained; the defaults are those of GHN-2 [1].

    Attributes:
      optimizer: adam, with L2 decay added to the gradient; adamw, whose decay is none of the gradient; or muon, which
        makes the update of each weight matrix orthogonal [3], with adam for vectors and embeddings.
      learning_rate: the highest one.
      schedule: step, times 0.1 at two thirds of the steps and again at five sixths; or cosine, down to nothing.
      warm_up: share of the steps over which the learning rate rises to its highest.
      weight_decay: of all weights.
      clip: largest global norm of the gradient of a step.
      network_clip: largest norm of the gradient of one network of the meta-batch, and networks whose gradient is not
        finite are left out of the step; None takes all as they are.
      own_images: whether each network of a meta-batch sees images of its own, rather than all the same ones: noise that
        is common to all networks does not average out.
      start: how weights start: as the configuration says, or so that layers of predicted networks pass their channels
        on (`ghn_jax.models.near_identity`).
      average: decay of the exponential average of the GHN's weights, which is then what is validated and used; None
        uses the weights themselves.
      norm_penalty: factor of the sum of the norms of a network's predicted tensors, which is added to its loss [2].
    """

    optimizer: Literal["adam", "adamw", "muon"] = "adam"
    learning_rate: float = 1e-3
    schedule: Literal["step", "cosine"] = "step"
    warm_up: float = 0.0
    weight_decay: float = 1e-5
    clip: float = 5.0
    network_clip: float | None = None
    own_images: bool = False
    start: Literal["default", "near_identity"] = "default"
    average: float | None = None
    norm_penalty: float = 0.0

    def make_optimizer(self, num_steps: int) -> optax.GradientTransformation:
        """The optimiser of a run of this many steps."""
        rate = self._schedule(num_steps)
        clip = optax.clip_by_global_norm(self.clip)
        if self.optimizer == "adamw":
            return optax.chain(clip, optax.adamw(rate, weight_decay=self.weight_decay))
        if self.optimizer == "muon":
            decay = self.weight_decay
            muon = optax.contrib.muon(
                rate, weight_decay=decay, adam_weight_decay=decay, muon_weight_dimension_numbers=matrices
            )
            return optax.chain(clip, muon)
        return optax.chain(clip, optax.add_decayed_weights(self.weight_decay), optax.adam(rate))

    def _schedule(self, num_steps: int) -> optax.Schedule:
        rising = round(self.warm_up * num_steps)
        if self.schedule == "cosine":
            return optax.warmup_cosine_decay_schedule(
                self.learning_rate / 40, self.learning_rate, rising, max(num_steps, rising + 1)
            )
        drops = {num_steps * 2 // 3: 0.1, num_steps * 5 // 6: 0.1}
        return optax.piecewise_constant_schedule(self.learning_rate, drops)


def matrices(weights: Any) -> Any:
    """For each weight of a GHN its input and output axes as a matrix, None for vectors and tables of embeddings.

    The decoder's weights have positions, or both channel axes of what they decode, among their outputs. By default
    optax would leave these weights, nearly all of a GHN, to Adam.
    """

    def axes(path: tuple[Any, ...], weight: Any) -> optax.contrib.MuonDimensionNumbers | None:
        name = "/".join(str(key.key) for key in path)
        if weight.ndim < 2 or "embed" in name or name.endswith("bias"):
            return None
        inputs = 2 if weight.ndim == 4 else 1 if "weight_ih" in name or "weight_hh" in name else 0
        outputs = tuple(axis for axis in range(weight.ndim) if axis != inputs)
        return optax.contrib.MuonDimensionNumbers((inputs,), outputs)

    return jax.tree_util.tree_map_with_path(axes, weights)


PUBLISHED = Recipe()

RECIPES = {
    "published": PUBLISHED,
    "efficient": Recipe(
        optimizer="muon",
        learning_rate=1e-2,
        schedule="cosine",
        warm_up=0.05,
        weight_decay=0.0,
        network_clip=1.0,
        own_images=True,
        start="near_identity",
        average=0.95,
    ),
    "ghn3": Recipe(
        optimizer="adamw",
        learning_rate=4e-4,
        schedule="cosine",
        warm_up=5 / 75,
        weight_decay=1e-2,
        norm_penalty=3e-5,
    ),
}


def recipe(name: str) -> Recipe:
    """The recipe called `name`; ValueError, with the nearest names, for an unknown one."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]
