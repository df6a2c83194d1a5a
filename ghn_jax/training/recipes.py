"""Recipes: named ways to meta-train a GHN.

`published` is the recipe of GHN-2 and `ghn3` that of GHN-3, to the letter. `efficient` is for runs of few networks;
docs/recipes.md says what each of its parts buys, and what else was tried.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021, Section 5.
[2] Knyazev et al., Can We Scale Transformers to Predict Parameters of Diverse ImageNet Models?, ICML 2023.
"""

import dataclasses
from typing import Literal

from ghn_jax.runtime.errors import unknown_name
from ghn_jax.runtime.extras import extra

with extra("train"):
    import optax


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a GHN is meta-trained; the defaults are those of GHN-2 [1].

    Attributes:
      optimizer: adam, with L2 decay added to the gradient; or adamw, whose decay is none of the gradient.
      learning_rate: the highest one.
      schedule: step, times 0.1 at two thirds of the steps and again at five sixths; or cosine, down to nothing.
      warm_up: share of the steps over which the learning rate rises to its highest.
      weight_decay: of all weights.
      clip: largest global norm of the gradient of a step.
      network_clip: largest norm of the gradient of one network of the meta-batch, and networks whose gradient is not
        finite are left out of the step; None takes all as they are.
      start: how weights start: as the configuration says, or so that layers of predicted networks pass their channels
        on (`ghn_jax.models.near_identity`).
      average: decay of the exponential average of the GHN's weights, which is then what is validated and used; None
        uses the weights themselves.
    """

    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 1e-3
    schedule: Literal["step", "cosine"] = "step"
    warm_up: float = 0.0
    weight_decay: float = 1e-5
    clip: float = 5.0
    network_clip: float | None = None
    start: Literal["default", "near_identity"] = "default"
    average: float | None = None

    def make_optimizer(self, num_steps: int) -> optax.GradientTransformation:
        """The optimiser of a run of this many steps."""
        rate = self._schedule(num_steps)
        clip = optax.clip_by_global_norm(self.clip)
        if self.optimizer == "adamw":
            return optax.chain(clip, optax.adamw(rate, weight_decay=self.weight_decay))
        return optax.chain(clip, optax.add_decayed_weights(self.weight_decay), optax.adam(rate))

    def _schedule(self, num_steps: int) -> optax.Schedule:
        rising = round(self.warm_up * num_steps)
        if self.schedule == "cosine":
            return optax.warmup_cosine_decay_schedule(
                self.learning_rate / 40, self.learning_rate, rising, max(num_steps, rising + 1)
            )
        drops = {num_steps * 2 // 3: 0.1, num_steps * 5 // 6: 0.1}
        return optax.piecewise_constant_schedule(self.learning_rate, drops)


PUBLISHED = Recipe()

RECIPES = {
    "published": PUBLISHED,
    "efficient": Recipe(
        schedule="cosine", warm_up=0.05, network_clip=1.0, start="near_identity", average=0.98
    ),
}


def recipe(name: str) -> Recipe:
    """The recipe called `name`; ValueError, with the nearest names, for an unknown one."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]
