"""The penalty on the norms of predicted tensors, with which GHN-3 is trained.

[1] Knyazev et al., Can We Scale Transformers to Predict Parameters of Diverse ImageNet Models?, ICML 2023, Section 3.3.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Rows = Float[Array, "row 8"]


def norms_gradient(flat: Rows, tensors: Int[Array, " tensor"]) -> Rows:
    """The gradient of the sum over tensors of their Frobenius norms: w / |w| for each; 0 for a tensor of zeros.

    Args:
      flat: the flat parameter vector of a network.
      tensors: the first row of each tensor, as `Plan.tensors`.
    """
    starts = jnp.zeros(len(flat), jnp.int32).at[tensors].add(1, mode="drop")
    owner = jnp.cumsum(starts)
    squares = jax.ops.segment_sum(jnp.square(flat).sum(-1), owner, len(tensors) + 1)
    inverse = jnp.where(squares > 0, jax.lax.rsqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
    return flat * inverse[owner, None]
