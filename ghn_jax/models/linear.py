"""The linear layers that decoders are made of, by public name."""

from typing import NamedTuple

from jaxtyping import Array, Float

Embeddings = Float[Array, "node c"]
Weights = dict[str, Array]


class Layer(NamedTuple):
    """A linear layer with PyTorch's default start.

    Attributes:
      fan_in: number of its inputs.
      kernel, bias: shapes; a bias of None is none.
      is_small: whether its kernel starts at a fifth, its bias at 0.
    """

    fan_in: int
    kernel: tuple[int, ...]
    bias: tuple[int, ...] | None
    is_small: bool = False


def linear(weights: Weights, name: str, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
    """A layer with a kernel (i, o)."""
    return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]
