import pathlib
from collections.abc import Iterator

import jax
import pytest
from commands_in_forks import Forks

from ghn_jax.runtime import compilation

GOLDEN = pathlib.Path(__file__).parent / "golden"


LONG = (
    "test_training",
    "test_devices",
    "test_parity",
    "test_finetuning",
    "test_faults_page",
    "test_networks",
)
"""Modules that come first, so that none of them keeps one of two workers busy when the other has nothing left."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(scope="session", autouse=True)
def compilation_cache() -> None:
    """Tests compile many small programs; a second run finds them on disk."""
    compilation.use_persistent_cache()
    assert jax.default_backend() == "cpu"


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    return GOLDEN


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Runs commands without the seconds that each would take to import all that it needs."""
    started = Forks()
    yield started
    started.close()
