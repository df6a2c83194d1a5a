"""Graph HyperNetworks in JAX: predict all parameters of a neural network in one forward pass."""

from ghn_jax.predict import Prediction, Report, graph_of, predict_parameters
from ghn_jax.pretrained import TrainedGHN, load
from ghn_jax.targets import target
from ghn_jax.tracing.batch_norm import apply_by_batch, fill_running_statistics
from ghn_jax.tracing.models import Function
from ghn_jax.tracing.walk import UnsupportedModel

__all__ = [
    "Function",
    "Prediction",
    "Report",
    "TrainedGHN",
    "UnsupportedModel",
    "apply_by_batch",
    "fill_running_statistics",
    "graph_of",
    "load",
    "predict_parameters",
    "target",
]
