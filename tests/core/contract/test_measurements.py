"""The contract of measurements."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

import pytest

from creditgrid.core.contract.measurements import CHECKS
from creditgrid.core.contract.suite import check_unit
from creditgrid.core.experiment import Column
from creditgrid.core.units.decorators import measurement
from creditgrid.core.units.known import installed
from creditgrid.core.units.measurement import Measured, Measurement

calls: list[Measured] = []


@measurement(columns={"update_size": "Norm of the update."}, after_step=True)
def update_size(measured: Measured) -> Mapping[str, Any]:
    """The size of the update."""
    assert measured.update is not None
    return {"update_size": sum(part.square().sum() for part in measured.update.values()) ** 0.5}  # a tensor


@measurement(columns={"moved": Column("int64", "Parameters that moved.")})
def moved(measured: Measured) -> Mapping[str, Any]:
    """How many parameters moved."""
    return {"moved": None if measured.update is None else len(measured.update)}


def of(function: Any, *, columns: Mapping[str, Any] | None = None, after_step: bool = True) -> type[Measurement]:
    return measurement(columns={"a": "A."} if columns is None else columns, after_step=after_step)(function)


def odd(measured):
    """Odd."""
    return {"a": 1.0}


def other(measured):
    """Another column."""
    return {"b": 1.0}


def plain(measured):
    """No columns."""
    return 1.0


def text(measured):
    """A text."""
    return {"a": "long"}


def infinite(measured):
    """Not finite."""
    return {"a": float("inf")}


def stepless(measured):
    """Needs a step and does not say so."""
    return {"a": float(len(measured.update))}


def restless(measured):
    """Counts its calls."""
    calls.append(measured)
    return {"a": float(len(calls))}


def drawn(measured):
    """Draws."""
    return {"a": random.random()}


def writing(measured):
    """Writes."""
    measured.x.mul_(2)
    return {"a": 1.0}


BROKEN = [
    (of(odd, columns={}), "its columns are declared well", "no columns"),
    (of(odd, columns={"A": "A."}), "its columns are declared well", "lower_case"),
    (of(odd, columns={"seconds": "A."}), "its columns are declared well", "one of every row"),
    (of(odd, columns={"a": ""}), "its columns are declared well", "needs a Column"),
    (of(other), "it gives its columns", "gave the columns b"),
    (of(plain), "it gives its columns", "gave a float"),
    (of(text), "it gives its columns", r"'long' \(str\), and its type is float64"),
    (of(infinite), "it gives its columns", "a is inf"),
    (of(stepless, after_step=False), "it gives its columns", "raised TypeError"),
    (of(restless), "equal inputs give equal values", "two calls"),
    (of(drawn), "equal inputs give equal values", "two calls"),
    (of(drawn), "the global random state is left alone", "random"),
    (of(writing), "what it sees does not change", "changes x"),
]


@pytest.mark.parametrize("unit", [update_size, moved, *installed().of("measurements").values()])
def test_a_sound_measurement_passes(unit: type[Measurement]) -> None:
    assert [finding for result in check_unit(unit, quick=False) for finding in result.findings] == []


@pytest.mark.parametrize(("unit", "check", "problem"), BROKEN)
def test_a_broken_measurement_fails_its_check(unit: type[Measurement], check: str, problem: str) -> None:
    findings = [f for result in check_unit(unit, quick=False) for f in result.findings if f.check == check]
    assert any(re.search(problem, finding.problem) for finding in findings), findings
    assert findings[0].file == __file__


def test_every_check_of_measurements_can_fail() -> None:
    assert {check.name for check in CHECKS} == {check for _, check, _ in BROKEN}
