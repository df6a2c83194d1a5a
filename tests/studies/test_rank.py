"""Kendall's tau against SciPy's, and its interval."""

import numpy as np
import pytest
from scipy import stats

from ghn_jax.studies.rank import kendall


def test_tau_is_that_of_scipy_with_ties():
    generator = np.random.default_rng(0)
    for _ in range(5):
        x, y = generator.integers(0, 6, (2, 30)).astype(float).tolist()
        wanted: float = stats.kendalltau(x, y)[0]  # pyright: ignore
        assert kendall(x, y, samples=10).value == pytest.approx(wanted)


def test_the_interval_holds_tau_and_narrows_with_more_items():
    generator = np.random.default_rng(1)

    def width(num: int) -> float:
        x = generator.standard_normal(num)
        tau = kendall(x.tolist(), (x + generator.standard_normal(num)).tolist(), samples=200)
        assert tau.low < tau.value < tau.high
        return tau.high - tau.low

    assert width(200) < width(20) / 2


def test_one_order_has_no_tau_and_few_items_are_an_error():
    assert np.isnan(kendall([1, 1, 1], [1, 2, 3], samples=5).value)
    with pytest.raises(ValueError, match="at least 3"):
        kendall([1, 2], [1, 2])
