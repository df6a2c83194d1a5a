"""Memory that no parameter is written to shows."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ghn_jax.models import assembly


@pytest.fixture(autouse=True)
def _every_element_is_written(monkeypatch: pytest.MonkeyPatch):
    allocate, assemble = assembly._allocate, assembly.assemble

    def is_real(tensor: Any) -> bool:
        return jnp.issubdtype(tensor.dtype, jnp.floating)

    def poisoned(leaves: Any) -> list[np.ndarray]:
        tensors = allocate(leaves)
        for tensor in filter(is_real, tensors):
            tensor[...] = np.nan
        return tensors

    @functools.wraps(assemble)
    def checked(*args: Any, **kwargs: Any) -> list[Any]:
        tensors = assemble(*args, **kwargs)
        for number, tensor in enumerate(filter(is_real, tensors)):
            assert not np.isnan(tensor).any(), f"tensor {number} of {jax.tree.map(np.shape, tensors)}"
        return tensors

    monkeypatch.setattr(assembly, "_allocate", poisoned)
    monkeypatch.setattr(assembly, "assemble", checked)
