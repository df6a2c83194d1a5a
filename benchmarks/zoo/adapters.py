"""Makes a `ghn_jax.Function` of a model of each framework, with its running statistics apart.

What is here is what docs/models.md tells a user to write.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.nn import initializers

from ghn_jax import Function


class Entry(NamedTuple):
    """A model of a package.

    Attributes:
      package: as it is called in the table.
      name: of the model.
      make: makes it.
      shape: of one image, as the model takes it.
    """

    package: str
    name: str
    make: Callable[[], Any]
    shape: tuple[int, ...] = (224, 224, 3)

    @property
    def images(self) -> jax.ShapeDtypeStruct:
        """What the model is traced on."""
        return jax.ShapeDtypeStruct((1, *self.shape), jnp.float32)


def keras_function(make: Callable[[], Any]) -> Function:
    """Of a Keras model with the JAX backend."""
    from keras.src.backend.jax import random

    with nothing_drawn(random):
        model = make()
    own = [variable.value for variable in model.trainable_variables]
    rest = [variable.value for variable in model.non_trainable_variables]

    def apply(params: Any, states: Any, images: Any) -> Any:
        return model.stateless_call(params, states, images, training=False)[0]

    return Function(apply, own, rest)


@contextlib.contextmanager
def nothing_drawn(*modules: ModuleType) -> Iterator[None]:
    """Inside, functions of modules draw no initial weights: JAX would compile one for each shape, most of the time.

    The modules are JAX's if none is given.
    """

    def filled(draw: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(draw)

        def fill(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            return jax.device_put(np.full(given.get("shape", ()), 0.1, given.get("dtype") or np.float32))

        return fill

    kinds = ("uniform", "normal", "truncated_normal")
    with contextlib.ExitStack() as stack:
        for module in modules or (jax.random, initializers.random):
            fills = {kind: filled(getattr(module, kind)) for kind in kinds}
            stack.enter_context(mock.patch.multiple(module, **fills))
        yield


def haiku_function(forward: Callable[[Any, bool], Any], images: jax.ShapeDtypeStruct) -> Function:
    """Of a Haiku network's (images, is_training) -> logits; its parameters are abstract."""
    import haiku as hk

    net = hk.transform_with_state(forward)
    params, states = jax.eval_shape(lambda key, x: net.init(key, x, True), jax.random.key(0), images)
    states = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), states)
    return Function(lambda p, s, x: net.apply(p, s, None, x, False)[0], params, states)


def equinox_function(model: Any, states: Any = None) -> Function:
    """Of an Equinox model of one image, with its `eqx.nn.State` if it has one."""
    import equinox as eqx

    params, static = eqx.partition(model, eqx.is_inexact_array)
    takes_key = "key" in inspect.signature(type(model).__call__).parameters
    keys = {"key": jax.random.key(0)} if takes_key else {}
    if states is None:

        def apply(params: Any, images: Any) -> Any:
            whole = eqx.nn.inference_mode(eqx.combine(params, static))
            return jax.vmap(lambda x: whole(x, **keys))(images)

        return Function(apply, params)

    arrays, rest = eqx.partition(states, eqx.is_array)

    def apply_with_state(params: Any, arrays: Any, images: Any) -> Any:
        whole, states = eqx.nn.inference_mode(eqx.combine(params, static)), eqx.combine(arrays, rest)
        one = lambda x: whole(x, states, **keys)[0]  # noqa: E731
        return jax.vmap(one, axis_name="batch")(images)

    return Function(apply_with_state, params, arrays)


def torch_function(module: Any) -> Function:
    """Of a PyTorch module, through torchax."""
    import torchax

    arrays, run = torchax.extract_jax(module.eval())
    own = {name for name, _ in module.named_parameters()}
    params = {name: array for name, array in arrays.items() if name in own}
    states = {name: array for name, array in arrays.items() if name not in own}
    return Function(lambda p, s, x: run({**p, **s}, (x,)), params, states)
