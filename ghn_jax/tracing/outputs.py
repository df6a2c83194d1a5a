"""Which output of a model are its logits, and how leaves of trees are called."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ghn_jax.tracing.errors import UnsupportedModel
from ghn_jax.tracing.walk import Output


def leaf_name(path: Any) -> str:
    """A leaf's path, such as "layers.0.kernel"."""
    parts = (getattr(part, "key", getattr(part, "idx", getattr(part, "name", part))) for part in path)
    return ".".join(str(part) for part in parts).removesuffix(".value")


def find_outputs(outputs: Any, images: jax.ShapeDtypeStruct, logits: str | None) -> list[Output]:
    """Which outputs may be the logits (batch, label): those of that name, else one that is called so, else all.

    Of tokens (batch, token) they may be (batch, token, label).

    Raises UnsupportedModel if there are none.
    """
    named = [(leaf_name(path), leaf) for path, leaf in jax.tree.leaves_with_path(outputs)]
    if logits is not None:
        chosen = [place for place, (name, _) in enumerate(named) if logits in (name, name.rpartition(".")[2])]
        if not chosen:
            names = ", ".join(repr(name) for name, _ in named)
            raise UnsupportedModel(f"`logits` (={logits!r}) is no output of `model`: choose one of {names}")
    else:
        called = [place for place, (name, _) in enumerate(named) if name.rpartition(".")[2] == "logits"]
        chosen = called or list(range(len(named)))
    found = [Output(i, named[i][1].shape[-1]) for i in chosen if _is_logits(named[i][1].shape, images)]
    if not found:
        shape = tuple(named[chosen[0]][1].shape) if chosen else ()
        raise UnsupportedModel(
            f"`model`'s output has shape {shape} for images of shape {images.shape}: a classifier returns (batch, "
            "label); in Python also headless=True, for one without a classification layer"
        )
    return found


def _is_logits(shape: Sequence[int], images: jax.ShapeDtypeStruct) -> bool:
    of_each = (
        (images.shape[:1], images.shape) if jnp.issubdtype(images.dtype, jnp.integer) else (images.shape[:1],)
    )
    return tuple(shape[:-1]) in of_each
