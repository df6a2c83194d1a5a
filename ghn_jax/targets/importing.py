"""A user's own model, given as module:factory or file.py:factory."""

import importlib
import importlib.util
import inspect
import pathlib
import sys
from typing import Any

import flax.linen as nn
from flax import nnx

from ghn_jax.runtime import origin


def import_model(arch: str, seed: int = 0) -> Any:
    """Makes the model that `arch` names.

    Args:
      arch: package.module:factory, looked for in the current directory too, or path/file.py:factory; a factory is a
        function that makes a model, or the model itself. It is called without arguments, or with `rngs` if it takes
        them.
      seed: of `rngs`.

    Raises ValueError for what cannot be imported or called.
    """
    place, _, attribute = arch.rpartition(":")
    try:
        factory = getattr(_module(place), attribute)
        if isinstance(factory, nn.Module | nnx.Module) or not callable(factory):
            return factory
        takes_rngs = "rngs" in inspect.signature(factory).parameters
        return factory(rngs=nnx.Rngs(seed)) if takes_rngs else factory()
    except (Exception, SystemExit) as error:  # whatever the module raises; it may parse arguments, and end
        raise ValueError(
            f"`arch` (={arch!r}) cannot be imported ({origin.described(error)}): give package.module:factory or "
            "file.py:factory, a function without arguments that makes a model"
        ) from error


def _module(place: str) -> Any:
    path = pathlib.Path(place)
    if path.suffix == ".py":
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None or not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # dataclasses, hence Linen modules, look their module up
        spec.loader.exec_module(module)
        return module
    if "" not in sys.path and str(pathlib.Path.cwd()) not in sys.path:
        sys.path.insert(0, str(pathlib.Path.cwd()))
    return importlib.import_module(place)
