"""How alike two orders are: Kendall's tau with a confidence interval."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Tau(NamedTuple):
    """Kendall's tau-b, and the interval that holds 95 % of its bootstrap samples."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def kendall(first: Sequence[float], second: Sequence[float], samples: int = 1000, seed: int = 0) -> Tau:
    """Tau-b of two lists, and its interval over items drawn with replacement.

    Raises ValueError for lists of other lengths, or fewer than three items.
    """
    if len(first) != len(second) or len(first) < 3:
        raise ValueError(
            f"`first` and `second` have {len(first)} and {len(second)} items: needed are as many, and at least 3"
        )
    x, y = _signs(np.asarray(first, float)), _signs(np.asarray(second, float))
    generator = np.random.default_rng(seed)
    draws = [generator.integers(len(first), size=len(first)) for _ in range(samples)]
    taus = [_tau(x[np.ix_(draw, draw)], y[np.ix_(draw, draw)]) for draw in draws]
    low, high = np.nanpercentile(taus, [2.5, 97.5]) if np.isfinite(taus).any() else (np.nan, np.nan)
    return Tau(_tau(x, y), float(low), float(high))


def _signs(values: Float[np.ndarray, " item"]) -> Float[np.ndarray, "item item"]:
    return np.sign(values[:, None] - values)


def _tau(x: Float[np.ndarray, "item item"], y: Float[np.ndarray, "item item"]) -> float:
    """Pairs in the same order less those in the other, over the pairs without ties; NaN if there are none."""
    scale = np.sqrt(np.abs(x).sum() * np.abs(y).sum())
    return float((x * y).sum() / scale) if scale else float("nan")
