"""Optional libraries: what is not needed to predict is installed with an extra of the package.

with extra("train"):
    import grain
"""

import contextlib
from collections.abc import Iterator


class MissingExtra(ImportError, ValueError):
    """A library is not installed; the message names the extra that has it."""


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Imports inside are of libraries that come with the extra `name` of the package.

    Raises MissingExtra if one is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library in ("", "ghn_jax"):
            raise  # a mistake in this package, not a library that is missing
        raise MissingExtra(
            f"`{library}` is not installed: pip install 'ghn-jax[{name}]', or, in a clone, '.[{name}]'",
            name=library,
        ) from None
