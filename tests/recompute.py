"""Every experiment's rows, computed again from downloaded artifacts alone: float64, one cell at a time, nothing shared.

It follows the formulas and the tensors' names, and imports nothing of CreditGrid. ``expected_rows`` computes and
``agrees`` compares. The tolerances are those of measurements in float32, and for rho and nudge in float64:

=============================  =======================================================================================
losses, norms, credit_rms, …   1e-5 of the value
differences, cosines, shares   1e-5 of the value, or 1e-6: a difference of losses of order 1 has their rounding error
                               (1.2e-7 in float32), and a cosine that of its unit vectors, however small it is
``pur_k``                      the tolerances of its two differences, propagated to their quotient
rho, nudge                     1e-3 of the value, or 1e-6 and 1e-8. Single precision is too coarse for rho: it
                               rounds a loss of order 1 by 2e-7, and so its central difference over 2e-3 by 1e-4, which
                               moved a trained network's rho, of 0.01 where the credit is weak, by up to 9e-5
=============================  =======================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from recompute_experiments import (
    credit_recovery_rows,
    dynamics_rows,
    exploitability_rows,
    linesearch_rows,
    snapshot_time_rows,
)
from recompute_network import Arrays

EXPERIMENTS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Arrays]], list[dict[str, float | None]]]] = {
    "linesearch": linesearch_rows,
    "snapshot_time": snapshot_time_rows,
    "exploitability": exploitability_rows,
    "credit_recovery": credit_recovery_rows,
    "dynamics": dynamics_rows,
}

EXACT, FLOOR, FINITE_DIFFERENCE = 1e-5, 1e-6, 1e-3
FLOORED = ("delta_", "dl_", "gamma", "update_cos", "accuracy", "test_accuracy")
FINITE_DIFFERENCE_FLOORS = {"rho": 1e-6, "nudge": 1e-8}


class Worst(NamedTuple):
    """The value with the largest error: ``ratio`` is its error over the tolerance, so at most 1 is agreement."""

    ratio: float
    column: str
    expected: float | None
    actual: float | None


def expected_rows(
    experiment: str, params: Mapping[str, Any], artifacts: Mapping[str, Arrays]
) -> list[dict[str, float | None]]:
    """The measured columns of a cell's rows; ``artifacts`` is {role: {tensor's name: array}}."""
    return EXPERIMENTS[experiment](params, artifacts)


def agrees(expected: Sequence[Mapping[str, Any]], actual: Sequence[Mapping[str, Any]]) -> Worst:
    """Compare the rows of one cell, matched by epoch and layer; other columns are ignored."""
    if len(expected) != len(actual):
        return Worst(math.inf, f"number of rows: {len(expected)} expected, {len(actual)} found", None, None)
    worst = Worst(0.0, "", None, None)
    for wanted, found in zip(sorted(expected, key=_place), sorted(actual, key=_place), strict=True):
        for column, value in wanted.items():
            if column not in found:
                return Worst(math.inf, f"no column {column}", value, None)
            error = _error(value, found[column])
            tolerance = _tolerance(column, wanted) if error else 1.0
            ratio = error / tolerance if tolerance else math.inf
            if ratio > worst.ratio:
                worst = Worst(ratio, _named(column, wanted), value, found[column])
    return worst


def _place(row: Mapping[str, Any]) -> tuple[int, int]:
    return row.get("epoch", 0), row.get("layer", 0)


def _named(column: str, row: Mapping[str, Any]) -> str:
    return column + "".join(f" at {name} {row[name]}" for name in ("epoch", "layer") if name in row)


def _error(wanted: float | None, found: float | None) -> float:
    # A number that is not finite is a null in the table.
    absent = [value is None or not math.isfinite(value) for value in (wanted, found)]
    if all(absent):
        return 0.0
    if any(absent):
        return math.inf
    assert wanted is not None
    assert found is not None
    return abs(wanted - found)


def _tolerance(column: str, row: Mapping[str, Any]) -> float:
    """How far the column's value in ``row`` may be off."""
    value: float | None = row[column]
    if value is None:
        return 0.0
    for name, floor in FINITE_DIFFERENCE_FLOORS.items():
        if column.startswith(name):
            return max(FINITE_DIFFERENCE * abs(value), floor)
    if column.startswith("pur_"):
        k = column.removeprefix("pur_")
        same, held = f"dl_same_{k}", f"dl_held_{k}"
        error = _tolerance(held, row) + abs(value) * _tolerance(same, row)
        return float(error / abs(row[same]))
    tolerance = EXACT * abs(value)
    return max(tolerance, FLOOR) if column.startswith(FLOORED) else tolerance
