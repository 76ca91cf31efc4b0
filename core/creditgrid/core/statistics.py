"""Seed statistics: mean, sample standard deviation, and the 95 % confidence interval of the mean."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class SeedStatistics(NamedTuple):
    """``std`` and ``ci95`` (the half-width) are None for fewer than two values: one seed does not show the spread."""

    n: int
    mean: float
    std: float | None
    ci95: float | None


def mean_std_ci(values: Sequence[float]) -> SeedStatistics:
    """Mean, standard deviation (n − 1) and Student-t 95 % half-width, t_{0.975, n−1} · std / √n.

    Raises:
        statistics.StatisticsError: for no values.
    """
    mean = statistics.fmean(values)
    n = len(values)
    if n < 2:
        return SeedStatistics(n, mean, None, None)
    std = statistics.stdev(values)
    return SeedStatistics(n, mean, std, t_quantile(n - 1) * std / math.sqrt(n))


# Written out because the light client computes intervals without SciPy; the tests compare it with SciPy's.
def t_quantile(degrees: int, level: float = 0.95) -> float:
    """The t with P(|T| ≤ t) = ``level`` for Student's T with ``degrees`` ≥ 1 degrees of freedom.

    For whole ν, P is a finite sum in θ = atan(t/√ν) (Abramowitz & Stegun, Handbook of Mathematical Functions, formulas
    26.7.3 and 26.7.4). It grows with θ, so bisection finds θ to the last digit.
    """
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        if _within(middle, degrees) < level:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(high)


def _within(theta: float, degrees: int) -> float:
    """P(|T| ≤ √ν tan θ)."""
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(2 + odd, degrees + 1, 2):  # each term is the previous one times cos² θ · (k − 1)/k
        total += term
        term *= cosine * cosine * (k - 1) / k
    return 2 / math.pi * (theta + sine * total) if odd else sine * total
