"""Flax scopes that make no parameters: blank ones, which halves the time to trace a model, or those that are given."""

from typing import Any

import jax
import numpy as np
from flax.core import meta
from flax.core.scope import Scope

_INITIALISERS = {
    initialiser.__module__ for initialiser in (jax.nn.initializers.zeros, jax.nn.initializers.lecun_normal())
}


class BlankParameters(Scope):
    """A scope where JAX's own initialisers are not run, nor traced, which takes longer than all the rest of a model."""

    def push(self, *args: Any, **kwargs: Any) -> Scope:
        """A scope inside this one."""
        child = super().push(*args, **kwargs)
        child.__class__ = BlankParameters
        return child

    def param(self, name: str, init_fn: Any, *init_args: Any, unbox: bool = True, **kwargs: Any) -> Any:
        """A parameter; a new one has no values yet."""
        if self.has_variable("params", name):  # Flax would trace the initialiser, to compare shapes
            self.reserve(name, "params")
            value = self.get_variable("params", name)
            return meta.unbox(value) if unbox else value
        is_blank = getattr(init_fn, "__module__", None) in _INITIALISERS and not hasattr(
            init_fn, "__wrapped__"
        )
        if not is_blank or kwargs or not init_args:
            return super().param(name, init_fn, *init_args, unbox=unbox, **kwargs)
        self.reserve(name, "params")
        shape, *given = init_args
        dtype = given[0] if given else _default_dtype(init_fn)
        sizes = np.broadcast_to(0, shape).shape  # `shape` may be one number
        self.put_variable("params", name, jax.lax.empty(sizes, jax.dtypes.canonicalize_dtype(dtype)))
        return self.get_variable("params", name)


class Initialising:
    """The answer to a model that asks whether it is being initialised, which is yes; it may run otherwise then.

    It is for Python's conditions alone: what else is done with it, such as `jnp.where`, raises a TypeError.
    """

    asked = False

    def __bool__(self) -> bool:
        self.asked = True
        return True

    def __eq__(self, other: object) -> bool:
        return other is self or (bool(self) and other is True)

    __hash__ = object.__hash__


class GivenParameters(Scope):
    """A scope that is initialised with parameters that are there already; all else is as without them."""

    def push(self, *args: Any, **kwargs: Any) -> Scope:
        """A scope inside this one."""
        child = super().push(*args, **kwargs)
        child.__class__ = GivenParameters
        return child

    def param(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """A parameter; random numbers that follow are those that would follow its initialiser's."""
        self.rng_counters["params"] += 1
        return super().param(name, *args, **kwargs)


def _default_dtype(initialiser: Any) -> Any:
    """The dtype that an initialiser of JAX was made with: a default of its function (key, shape, dtype)."""
    defaults: tuple[Any, ...] | None = initialiser.__defaults__
    dtype = next(iter(defaults or ()), None)
    return jax.dtypes.canonicalize_dtype(float) if dtype is None else dtype
