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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from creditgrid.core.spec.faults import shown

MAX_AXIS_VALUES = 1_000_000
"""The most values of an axis; more would exceed the number of cells that a sweep may have."""
MAX_VALUES = 2 * MAX_AXIS_VALUES
"""The most values of all axes of a sweep together."""
LARGEST = 1e100
"""The largest number in a generator, so that differences and counts are finite too."""


class Generator(NamedTuple):
    """A generated axis: the number of its values, and the value of each index."""

    length: int
    at: Callable[[int], Any]


def expand(axis: Any) -> list[Any]:
    """The values of one axis.

    Raises:
        ValueError: saying what is wrong with it and what would be accepted.
    """
    size(axis)
    if isinstance(axis, list):
        return axis
    count, at = generator(axis)
    return [at(index) for index in range(count)]


def size(axis: Any) -> int:
    """The number of values of one axis, before any of them is made.

    Raises:
        ValueError: as ``expand``.
    """
    count = len(axis) if isinstance(axis, list) else generator(axis).length
    if count == 0:
        raise ValueError("the axis is empty: give at least one value, or drop the axis")
    if count > MAX_AXIS_VALUES:
        raise ValueError(f"{count:,} values are more than the {MAX_AXIS_VALUES:,} that an axis may have")
    return count


def generator(axis: Any) -> Generator:
    """The generator that is written instead of a list.

    Raises:
        ValueError: as ``expand``.
    """
    if not isinstance(axis, dict):
        raise ValueError(
            f"an axis is a list of values or a generator such as {{linspace: [0, 1, 5]}}; got {shown(axis)}"
        )
    if len(axis) != 1 or next(iter(axis)) not in _GENERATORS:
        names = ", ".join(sorted(_GENERATORS))
        raise ValueError(f"a generator is one of {names}, alone; got {shown(list(axis))}")
    name, arguments = next(iter(axis.items()))
    return _GENERATORS[name](name, _numbers(name, arguments))


def _numbers(name: str, arguments: Any) -> Sequence[float]:
    if not isinstance(arguments, list) or any(isinstance(n, bool) or not isinstance(n, int | float) for n in arguments):
        raise ValueError(f"{name} takes a list of numbers; got {shown(arguments)}")
    if not all(-LARGEST <= n <= LARGEST for n in arguments):  # false for NaN too
        raise ValueError(f"{name} takes finite numbers of at most {LARGEST:g}; got {shown(arguments)}")
    return arguments


def _ends_and_count(name: str, arguments: Sequence[float]) -> tuple[float, float, int]:
    if len(arguments) != 3 or not isinstance(arguments[2], int) or not 1 <= arguments[2] <= MAX_AXIS_VALUES:
        wanted = f"[first, last, count] with a whole count from 1 to {MAX_AXIS_VALUES:,}"
        raise ValueError(f"{name} takes {wanted}; got {shown(arguments)}")
    return float(arguments[0]), float(arguments[1]), arguments[2]


def _linspace(name: str, arguments: Sequence[float]) -> Generator:
    first, last, count = _ends_and_count(name, arguments)
    return Generator(count, lambda i: _rounded(first + (last - first) * i / max(count - 1, 1)))


def _logspace(name: str, arguments: Sequence[float]) -> Generator:
    first, last, count = _ends_and_count(name, arguments)
    if first <= 0 or last <= 0:
        wanted = "the first and the last value, not exponents, both above 0"
        raise ValueError(f"logspace takes {wanted}; got {shown(arguments)}")
    low, high = math.log(first), math.log(last)
    return Generator(count, lambda i: _rounded(math.exp(low + (high - low) * i / max(count - 1, 1))))


def _range(_name: str, arguments: Sequence[float]) -> Generator:
    if not 1 <= len(arguments) <= 3:
        raise ValueError(f"range takes [stop], [start, stop] or [start, stop, step]; got {shown(arguments)}")
    start, stop, step = (0, arguments[0], 1) if len(arguments) == 1 else (*arguments, 1)[:3]
    if step == 0:
        raise ValueError("range takes a step other than 0")
    count = _steps(start, stop, step)
    if count > MAX_AXIS_VALUES:
        raise ValueError(f"{count:,.0f} values are more than the {MAX_AXIS_VALUES:,} that an axis may have")
    whole = isinstance(start, int) and isinstance(step, int)
    at = (lambda i: start + i * step) if whole else (lambda i: _rounded(start + i * step))
    return Generator(max(0, math.ceil(count)), at)


def _steps(start: float, stop: float, step: float) -> float:
    if isinstance(start, int) and isinstance(stop, int) and isinstance(step, int):
        return -((start - stop) // step)
    # Rounded as the values are: 1.1 / 0.1 is 11.000000000000002, and a twelfth value would be the stop itself.
    return float(f"{(stop - start) / step:.12g}")


def _rounded(value: float) -> float:
    return float(f"{value:.12g}")


_GENERATORS: dict[str, Callable[[str, Sequence[float]], Generator]] = {
    "linspace": _linspace,
    "logspace": _logspace,
    "range": _range,
}
