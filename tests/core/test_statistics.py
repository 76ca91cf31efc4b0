"""Seed statistics against NumPy and the printed table of Student's t."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from creditgrid.core.statistics import mean_std_ci, t_quantile

T975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 11: 2.228, 31: 2.042}  # by n: n - 1 degrees of freedom


@pytest.mark.parametrize("n", sorted(T975))
def test_half_width_is_students(n: int) -> None:
    values = np.random.default_rng(n).normal(3.0, 2.0, n)
    found = mean_std_ci(values.tolist())
    assert found.n == n
    assert found.mean == pytest.approx(values.mean(), rel=1e-12)
    assert found.std == pytest.approx(values.std(ddof=1), rel=1e-12)
    assert found.ci95 == pytest.approx(T975[n] * values.std(ddof=1) / np.sqrt(n), rel=3e-4)


@given(st.integers(1, 2000), st.floats(0.5, 0.999))
def test_the_t_quantile_against_scipy(degrees: int, level: float) -> None:
    assert t_quantile(degrees, level) == pytest.approx(stats.t.ppf((1 + level) / 2, degrees), rel=1e-9)


def test_one_value_has_no_spread() -> None:
    assert mean_std_ci([1.5]) == (1, 1.5, None, None)


def test_no_value_has_no_mean() -> None:
    with pytest.raises(statistics.StatisticsError):
        mean_std_ci([])


@given(st.floats(-1e6, 1e6), st.integers(2, 20))
def test_equal_values_have_no_spread(value: float, n: int) -> None:
    found = mean_std_ci([value] * n)
    assert found.mean == pytest.approx(value)
    assert found.std == pytest.approx(0.0, abs=1e-9)
    assert found.ci95 == pytest.approx(0.0, abs=1e-8)
