"""Axis generators against NumPy, Python's range and exact decimal arithmetic."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditgrid.core.spec.axes import MAX_AXIS_VALUES, expand

ORDINARY = st.floats(-1e6, 1e6, allow_nan=False)
POSITIVE = st.floats(1e-12, 1e12)
CENTS = st.integers(-2000, 2000).map(lambda n: n / 100)


@given(ORDINARY, ORDINARY, st.integers(1, 50))
def test_linspace_is_numpys_to_twelve_digits(first: float, last: float, count: int) -> None:
    values = expand({"linspace": [first, last, count]})
    scale = max(abs(first), abs(last), 1e-12)
    np.testing.assert_allclose(values, np.linspace(first, last, count), rtol=1e-11, atol=1e-11 * scale)


@given(POSITIVE, POSITIVE, st.integers(1, 50))
def test_logspace_is_numpys_geomspace_to_twelve_digits(first: float, last: float, count: int) -> None:
    values = expand({"logspace": [first, last, count]})
    np.testing.assert_allclose(values, np.geomspace(first, last, count), rtol=1e-11)


def test_generated_values_are_those_a_person_would_type() -> None:
    assert expand({"logspace": [1e-5, 1e-2, 4]}) == [1e-5, 1e-4, 1e-3, 1e-2]
    assert expand({"logspace": [1e-2, 1e-5, 4]}) == [1e-2, 1e-3, 1e-4, 1e-5]
    assert expand({"linspace": [0, 1, 11]}) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert expand({"range": [0, 0.5, 0.1]}) == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert expand({"linspace": [3, 9, 1]}) == [3.0]


@given(st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=3))
def test_whole_range_is_pythons(arguments: list[int]) -> None:
    if len(arguments) == 3 and arguments[2] == 0:
        return
    wanted = range(*arguments)
    if 0 < len(wanted) <= 10_000:
        values = expand({"range": arguments})
        assert values == list(wanted)
        assert all(type(value) is int for value in values)


def test_whole_range_is_exact_beyond_what_a_float_holds() -> None:
    assert expand({"range": [0, 10**15 + 1, 10**15]}) == [0, 10**15]
    assert expand({"range": [2**60, 2**60 + 3]}) == [2**60, 2**60 + 1, 2**60 + 2]


@given(CENTS, CENTS, CENTS)
def test_range_of_fractions_stops_before_its_end(start: float, stop: float, step: float) -> None:
    exact_start, exact_stop, exact_step = Decimal(repr(start)), Decimal(repr(stop)), Decimal(repr(step))
    wanted = []
    value = exact_start
    while exact_step and (value < exact_stop if exact_step > 0 else value > exact_stop) and len(wanted) <= 5000:
        wanted.append(float(value))
        value += exact_step
    if wanted:
        assert expand({"range": [start, stop, step]}) == wanted
    else:
        with pytest.raises(ValueError, match=r"empty|step other than 0"):
            expand({"range": [start, stop, step]})


def test_a_list_is_kept_as_written() -> None:
    values = ["a", 1, None, 0.5]
    assert expand(values) == values


@pytest.mark.parametrize(
    ("axis", "complaint"),
    [
        ([], "empty"),
        ({"range": [3, 3]}, "empty"),
        (3, "a list of values or a generator"),
        ("abc", "a list of values or a generator"),
        ({}, "a generator is one of linspace, logspace, range, alone"),
        ({"linspace": [0, 1, 2], "range": [3]}, "alone"),
        ({"geomspace": [1, 2, 3]}, "geomspace"),
        ({"linspace": [0, 1]}, r"\[first, last, count\]"),
        ({"linspace": [0, 1, 2.0]}, "whole count"),
        ({"linspace": [0, 1, 0]}, "whole count from 1"),
        ({"linspace": [0, 1, MAX_AXIS_VALUES + 1]}, "1,000,000"),
        ({"linspace": [0, 1, True]}, "list of numbers"),
        ({"linspace": [0, "1", 3]}, "list of numbers"),
        ({"linspace": 3}, "list of numbers"),
        ({"linspace": [float("nan"), 1, 3]}, "finite"),
        ({"logspace": [1, float("inf"), 3]}, "finite"),
        ({"linspace": [10**400, 1, 3]}, "finite"),
        ({"linspace": [-1e308, 1e308, 3]}, "finite numbers of at most"),
        ({"logspace": [0, 1, 3]}, "above 0"),
        ({"logspace": [1, -1, 3]}, "above 0"),
        ({"range": []}, r"\[stop\]"),
        ({"range": [1, 2, 3, 4]}, r"\[stop\]"),
        ({"range": [1, 2, 0]}, "other than 0"),
        ({"range": [10**9]}, "1,000,000,000 values are more than the 1,000,000"),
        ({"range": [0, 1e90, 1e-300]}, "more than the 1,000,000"),
        ([0] * (MAX_AXIS_VALUES + 1), "1,000,001 values are more than the 1,000,000"),
    ],
)
def test_invalid_axes_are_refused(axis: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        expand(axis)
