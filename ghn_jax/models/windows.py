"""Which of the decoded positions become a kernel, whatever its size.

A GHN decodes max_kernel x max_kernel positions. GHN-2 takes the top left corner of them and repeats it where a kernel
is larger [1]; GHN-3 takes the centre, and resizes [2]. Both directions are treated alike, one by one.

[1] Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021, Appendix B.1.
[2] Knyazev et al., Can We Scale Transformers to Predict Parameters of Diverse ImageNet Models?, ICML 2023.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float


class Window(NamedTuple):
    """How a direction of a kernel is made of the decoded positions.

    Attributes:
      start: (size, max_kernel) -> first position of a kernel of at most max_kernel.
      enlarge: (size, max_kernel) -> a matrix (size, max_kernel) that makes a larger kernel of all positions.
    """

    start: Callable[[int, int], int]
    enlarge: Callable[[int, int], Float[np.ndarray, "size position"]]

    def part(self, size: int, max_kernel: int) -> slice:
        """The positions that a kernel of this size needs."""
        start = self.start(size, max_kernel) if size < max_kernel else 0
        return slice(start, start + min(size, max_kernel))


def _repeat(size: int, max_kernel: int) -> Float[np.ndarray, "size position"]:
    return np.eye(max_kernel, dtype=np.float32)[np.arange(size) % max_kernel]


def _interpolate(size: int, max_kernel: int) -> Float[np.ndarray, "size position"]:
    """Linear interpolation between the centres of pixels, constant beyond the outermost."""
    place = np.clip((np.arange(size) + 0.5) * max_kernel / size - 0.5, 0, max_kernel - 1)
    left = np.floor(place).astype(int)
    share = (place - left)[:, None]
    one_hot = np.eye(max_kernel)
    mixed = (1 - share) * one_hot[left] + share * one_hot[np.minimum(left + 1, max_kernel - 1)]
    return mixed.astype(np.float32)


WINDOWS: dict[Literal["corner", "centre"], Window] = {
    "corner": Window(start=lambda size, max_kernel: 0, enlarge=_repeat),
    "centre": Window(start=lambda size, max_kernel: max_kernel // 2 - size // 2, enlarge=_interpolate),
}
"""By `GHNConfig.window`."""
