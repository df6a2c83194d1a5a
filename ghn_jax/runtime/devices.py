"""The devices that JAX uses."""

import os

import jax


def check() -> None:
    """Raises ValueError if JAX cannot use the devices that it is told to."""
    try:
        jax.devices()
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # an assertion where JAX_PLATFORMS names what is not there
        platforms = os.environ.get("JAX_PLATFORMS") or jax.config.jax_platforms  # pyright: ignore
        reason = f" ({' '.join(str(error).split())})" if str(error) else ""
        raise ValueError(
            f"JAX_PLATFORMS (={platforms!r}) names no device of this machine{reason}: unset it, or install jax for "
            "that device"
        ) from error
