"""What it means that a model is in evaluation: the same in prediction, by batch statistics, and in `evaluate.py`;
and the opposite, in fine-tuning.

Keywords of its call, attributes of its modules, and random numbers, which dropout must not need but a layer may.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

_FLAGS = {
    "train": False,
    "training": False,
    "is_training": False,
    "is_train": False,
    "train_mode": False,
    "deterministic": True,
    "use_running_average": True,
    "inference": True,
    "inference_mode": True,
    "is_inference": True,
    "eval_mode": True,
    "is_eval": True,
}
"""Arguments and attributes that say whether a model is in training, and what they are in evaluation."""


def keywords(call: Callable[..., Any]) -> dict[str, bool]:
    """The arguments of a model's call that put it in evaluation, whether they have a default or not."""
    parameters = inspect.signature(call).parameters.values()
    named = (p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    return {name: _FLAGS[name] for name in named if name in _FLAGS}


def linen_in_evaluation(model: nn.Module, training: bool = False) -> nn.Module:
    """The model, with attributes of its own that put it in training (or in evaluation, if `training`) turned around."""
    changes: dict[str, Any] = {
        field.name: _FLAGS[field.name] != training
        for field in dataclasses.fields(model)
        if isinstance(getattr(model, field.name, None), bool) and field.name in _FLAGS
    }
    return model.clone(**changes) if changes else model


def put_in_evaluation(model: nnx.Module, training: bool = False) -> None:
    """Sets the attributes of an NNX model and of the modules in it; to those of training, if `training`."""
    flags = {name: value != training for name, value in _FLAGS.items() if not hasattr(nnx.Module, name)}
    model.set_attributes(**flags, raise_if_not_found=False)


def random_keys(key: jax.Array) -> dict[str, jax.Array]:
    """Keys for Linen modules; collections of other names use that of the parameters."""
    return {"params": key, "dropout": key}


@contextlib.contextmanager
def default_settings() -> Iterator[None]:
    """What runs here runs alike, whatever the caller's settings forbid in code of its own."""
    with (
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.transfer_guard("allow"),
    ):
        yield
