"""Axis values: a list as written, or a numeric generator expanded to a list.

========================  =====================================================================
``{linspace: [a, b, n]}``  n values from a to b, both included, evenly spaced
``{logspace: [a, b, n]}``  n values from a to b, both included, evenly spaced in the logarithm
``{range: [a, b, step]}``  a, a + step, … below b (``[b]`` and ``[a, b]`` as in Python)
========================  =====================================================================

Generated floats are rounded to 12 significant digits, so that ``logspace: [1e-5, 1e-2, 4]`` names the same cells
as ``[1e-5, 1e-4, 1e-3, 1e-2]`` typed by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

MAX_AXIS_VALUES = 1_000_000
"""The most values of an axis; more would exceed the number of cells that a sweep may have."""
LARGEST = 1e100
"""The largest number in a generator, so that differences and counts are finite too."""


def expand(axis: Any) -> list[Any]:
    """The values of one axis.

    Raises:
        ValueError: saying what is wrong with it and what would be accepted.
    """
    if isinstance(axis, list):
        values = axis
    elif isinstance(axis, dict):
        if len(axis) != 1 or next(iter(axis)) not in _GENERATORS:
            raise ValueError(
                f"a generator is one of {', '.join(sorted(_GENERATORS))}, alone; got {sorted(map(str, axis))}"
            )
        name, arguments = next(iter(axis.items()))
        values = _GENERATORS[name](name, _numbers(name, arguments))
    else:
        raise ValueError(
            f"an axis is a list of values or a generator such as {{linspace: [0, 1, 5]}}; got {axis!r:.80}"
        )
    if not values:
        raise ValueError("the axis is empty: give at least one value, or drop the axis")
    if len(values) > MAX_AXIS_VALUES:
        raise ValueError(f"{len(values):,} values are more than the {MAX_AXIS_VALUES:,} that an axis may have")
    return values


def _numbers(name: str, arguments: Any) -> Sequence[float]:
    if not isinstance(arguments, list) or any(isinstance(n, bool) or not isinstance(n, int | float) for n in arguments):
        raise ValueError(f"{name} takes a list of numbers; got {arguments!r:.80}")
    if not all(-LARGEST <= n <= LARGEST for n in arguments):  # false for NaN too
        raise ValueError(f"{name} takes finite numbers of at most {LARGEST:g}; got {arguments!r:.80}")
    return arguments


def _ends_and_count(name: str, arguments: Sequence[float]) -> tuple[float, float, int]:
    if len(arguments) != 3 or not isinstance(arguments[2], int) or not 1 <= arguments[2] <= MAX_AXIS_VALUES:
        raise ValueError(
            f"{name} takes [first, last, count] with a whole count from 1 to {MAX_AXIS_VALUES:,}; got {list(arguments)}"
        )
    return float(arguments[0]), float(arguments[1]), arguments[2]


def _linspace(name: str, arguments: Sequence[float]) -> list[float]:
    first, last, count = _ends_and_count(name, arguments)
    return _rounded(first + (last - first) * i / max(count - 1, 1) for i in range(count))


def _logspace(name: str, arguments: Sequence[float]) -> list[float]:
    first, last, count = _ends_and_count(name, arguments)
    if first <= 0 or last <= 0:
        raise ValueError(
            f"logspace takes the first and the last value, not exponents, both above 0; got {list(arguments)}"
        )
    low, high = math.log(first), math.log(last)
    return _rounded(math.exp(low + (high - low) * i / max(count - 1, 1)) for i in range(count))


def _range(_name: str, arguments: Sequence[float]) -> list[float]:
    if not 1 <= len(arguments) <= 3:
        raise ValueError(f"range takes [stop], [start, stop] or [start, stop, step]; got {list(arguments)}")
    start, stop, step = (0, arguments[0], 1) if len(arguments) == 1 else (*arguments, 1)[:3]
    if step == 0:
        raise ValueError("range takes a step other than 0")
    count = _steps(start, stop, step)
    if count > MAX_AXIS_VALUES:
        raise ValueError(f"{count:,.0f} values are more than the {MAX_AXIS_VALUES:,} that an axis may have")
    values = [start + i * step for i in range(max(0, math.ceil(count)))]
    return values if all(isinstance(value, int) for value in values) else _rounded(values)


def _steps(start: float, stop: float, step: float) -> float:
    if isinstance(start, int) and isinstance(stop, int) and isinstance(step, int):
        return -((start - stop) // step)
    # Rounded as the values are: 1.1 / 0.1 is 11.000000000000002, and a twelfth value would be the stop itself.
    return float(f"{(stop - start) / step:.12g}")


def _rounded(values: Iterable[float]) -> list[float]:
    return [float(f"{value:.12g}") for value in values]


_GENERATORS: dict[str, Callable[[str, Sequence[float]], list[float]]] = {
    "linspace": _linspace,
    "logspace": _logspace,
    "range": _range,
}
