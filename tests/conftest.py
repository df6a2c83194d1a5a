import pathlib

import jax
import pytest

from ghn_jax.runtime import compilation

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="session", autouse=True)
def compilation_cache() -> None:
    """Tests compile many small programs; a second run finds them on disk."""
    compilation.use_persistent_cache()
    assert jax.default_backend() == "cpu"


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    return GOLDEN
