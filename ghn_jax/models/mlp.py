"""Linear layers and multi-layer perceptrons, initialised as in PyTorch.

The published training recipes start from PyTorch's default initialisation, so every linear map of a graph
hypernetwork does too: kernel and bias are drawn from U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float, Int


class MLP(nn.Module):
    """Dense layers, each followed by a ReLU.

    The layers are named "fc.0", "fc.2", ...: their place in the public code's list of layers and ReLUs.

    Attributes:
      features: width of each layer.
      activate_last: whether a ReLU follows the last layer too.
    """

    features: tuple[int, ...]
    activate_last: bool = True

    @nn.compact
    def __call__(self, inputs: Float[Array, "*batch in_features"]) -> Float[Array, "*batch out_features"]:
        """Maps the last axis of `inputs` to `features[-1]` channels."""
        if not self.features:
            raise ValueError(f"`features` (={self.features}) must name at least one layer's width")
        outputs = inputs
        for layer, width in enumerate(self.features):
            outputs = Dense(width, name=f"fc.{2 * layer}")(outputs)
            if self.activate_last or layer < len(self.features) - 1:
                outputs = nn.relu(outputs)
        return outputs


class NodeMLP(MLP):
    """An MLP on each node alone: what a GHN without message passing has [Zhang et al., ICLR 2019]."""

    def __call__(
        self, nodes: Float[Array, "graph node c"], hops: Int[Array, "graph node node"]
    ) -> Float[Array, "graph node c"]:
        """Updates the embeddings `nodes`; the path lengths `hops` make no difference."""
        del hops
        return super().__call__(nodes)


class Dense(nn.Module):
    """Linear layer `inputs @ kernel + bias` with PyTorch's default initialisation.

    Attributes:
      features: number of output channels.
    """

    features: int

    @nn.compact
    def __call__(self, inputs: Float[Array, "*batch in_features"]) -> Float[Array, "*batch features"]:
        """Maps the last axis of `inputs` to `features` channels."""
        fan_in = inputs.shape[-1]
        kernel = self.param("kernel", uniform_init(fan_in), (fan_in, self.features))
        bias = self.param("bias", uniform_init(fan_in), (self.features,))
        return inputs @ kernel + bias


def uniform_init(fan_in: int, gain: float = 1.0) -> Initializer:
    """Draws from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for weights and biases alike, times `gain`."""
    bound = gain / math.sqrt(fan_in)

    def init(key, shape, dtype=None, out_sharding=None):
        return jax.random.uniform(key, shape, dtype or jnp.float32, -bound, bound, out_sharding=out_sharding)

    return init
