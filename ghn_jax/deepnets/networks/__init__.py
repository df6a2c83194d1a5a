"""Networks as plain Flax modules: to use predicted parameters with, and to test the executor against."""

from ghn_jax.deepnets.networks.cells import CellNetwork
from ghn_jax.deepnets.networks.parameters import from_batch_stats, from_params, to_params

__all__ = ["CellNetwork", "from_batch_stats", "from_params", "to_params"]
