"""Scales of charts: domains with room around the data, and readable ticks, on linear, log and symlog axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import quantiles
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from creditgrid.client.plots.labels import COLOURS, Values

if TYPE_CHECKING:
    import altair as alt

DASHES = ([1, 0], [7, 3], [2, 2], [10, 3, 2, 3], [5, 2, 1, 2, 1, 2], [12, 4], [4, 4])
"""One fewer than the colours, so that 56 pairs differ."""
SEPARATE = 10
"""More series of numbers have a continuous scale of colours."""
MOST_TICKS = 7
# 1e-5, 0.01, 1, 1000, 1e4: other powers of ten are too long in full.
SHORT = (
    "replace(format(datum.value, datum.value != 0 && (abs(datum.value) < 0.01 || abs(datum.value) >= 10000)"
    " ? '~e' : '~g'), 'e+', 'e')"
)


class Scaled(NamedTuple):
    """A scale with the domain and ticks of its axis; ``ticks`` is None for Vega's default."""

    scale: alt.Scale
    low: float
    high: float
    ticks: list[float] | None

    @property
    def short(self) -> bool:
        """Whether numbers on the axis need the short format, because of their size or range."""
        return self.ticks is not None or not 1e-3 <= max(abs(self.low), abs(self.high)) < 1e5


def scaled(kind: Literal["linear", "log", "symlog"], values: Sequence[float], zero: bool = False) -> Scaled:
    """A scale with room for ``values``; with ``zero`` it includes 0. On a log scale only values > 0 count."""
    import altair as alt

    if kind == "log":
        positive = [value for value in values if value > 0] or [1.0]
        low, high = min(positive) / 1.25, max(positive) * 1.25
        ticks = powers(low, high)
        return Scaled(
            alt.Scale(type="log", domain=[low, high], clamp=True), low, high, ticks if len(ticks) > 1 else None
        )
    low, high = min(values, default=0.0), max(values, default=1.0)
    if zero or kind == "symlog":
        low, high = min(low, 0.0), max(high, 0.0)
    if kind == "linear":
        room = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
        low, high = (low if zero and low == 0 else low - room), (high if zero and high == 0 else high + room)
        return Scaled(alt.Scale(domain=[low, high], zero=zero), low, high, None)
    constant = linear_below(values)
    low, high = (1.3 * low if low else -constant / 2), (1.3 * high if high else constant / 2)
    ticks = symmetric_powers(low, high, constant)
    return Scaled(alt.Scale(type="symlog", constant=constant, domain=[low, high]), low, high, ticks)


def along(kind: Literal["linear", "log", "symlog"], values: Sequence[float]) -> Scaled:
    """The scale of x; if its values are few whole numbers, such as epochs, they are the ticks."""
    found = scaled(kind, values)
    distinct = sorted(set(values))
    whole = all(float(value).is_integer() for value in distinct)
    if kind != "log" and whole and len(distinct) <= MOST_TICKS:
        return found._replace(ticks=[float(value) for value in distinct])
    return found


def powers(low: float, high: float, most: int = MOST_TICKS) -> list[float]:
    """Powers of ten from ``low`` > 0 to ``high``, at most ``most``, evenly spread."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    step = max(1, math.ceil((last - first + 1) / most))
    return [float(f"1e{exponent}") for exponent in range(first, last + 1, step)]


def symmetric_powers(low: float, high: float, constant: float) -> list[float]:
    """0 and the same powers of ten on both sides, outside the almost linear part around 0."""
    outer = max(-low, high)
    sizes = powers(constant if outer < 100 * constant else 10 * constant, outer, most=3)
    return [*(-size for size in reversed(sizes) if -size >= low), 0.0, *(size for size in sizes if size <= high)]


def linear_below(values: Sequence[float]) -> float:
    """The power of ten below which a symlog scale is linear: smaller than most values, not only than the largest.

    At most four decades are above it, because both sides of 0 have ticks.
    """
    sizes = sorted(abs(value) for value in values if value)
    if not sizes:
        return 1.0
    quarter = quantiles(sizes, n=4)[0] if len(sizes) > 1 else sizes[0]
    return float(f"1e{math.floor(math.log10(min(max(quarter, sizes[-1] / 1e4), sizes[-1] / 10)))}")


def colour(series: Values, line: bool) -> alt.Color:
    """The colour of each series: by slot for names, along viridis for numbers."""
    import altair as alt

    options: Any = {"symbolType": "stroke", "symbolSize": 420, "symbolStrokeWidth": 2.5} if line else {}
    legend = alt.Legend(title=series.title, symbolOpacity=1, **options)
    viridis = alt.SchemeParams(name="viridis", extent=[0, 0.92])
    if series.numeric and len(series.labels) > SEPARATE:
        return alt.Color("level:Q", scale=alt.Scale(scheme=viridis), legend=legend)
    if series.numeric:
        return alt.Color("series:O", scale=alt.Scale(domain=list(series.labels), scheme=viridis), legend=legend)
    colours = [COLOURS[slot % len(COLOURS)] for slot in series.slots]
    return alt.Color("series:N", scale=alt.Scale(domain=list(series.labels), range=colours), legend=legend)


def dash(series: Values) -> alt.StrokeDash:
    """The dashes of each series of names, so that lines differ in black and white too."""
    import altair as alt

    dashes: Any = [DASHES[slot % len(DASHES)] for slot in series.slots]
    return alt.StrokeDash(
        "series:N", scale=alt.Scale(domain=list(series.labels), range=dashes), legend=alt.Legend(title=series.title)
    )
