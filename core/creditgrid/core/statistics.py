"""Seed statistics: mean, sample standard deviation, and the 95 % confidence interval of the mean."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class SeedStatistics(NamedTuple):
    """``std`` and ``ci95`` (the half-width) are None for fewer than two values: one seed says nothing of the spread."""

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
    # scipy is there wherever summaries are made (the service); plans and clients do without it.
    from scipy.special import stdtrit

    std = statistics.stdev(values)
    return SeedStatistics(n, mean, std, float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n))
