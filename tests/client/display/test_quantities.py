"""Durations, sizes and numbers for a person."""

from __future__ import annotations

from typing import Any

import pytest

from creditgrid.client.display.quantities import duration, number, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (86_399.9, "1 d 0 h"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 Bytes"),
        (999, "999 Bytes"),
        (1000, "1 kB"),
        (1_234_000, "1.23 MB"),
        (999_700, "1 MB"),
        (5e9, "5 GB"),
        (2.5e13, "25 TB"),
    ],
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "true"),
        (3, "3"),
        (-0.123456, "-0.1235"),
        (1e-5, "1e-05"),
        ("[x]", "[x]"),
        ([1, "a"], '[1, "a"]'),
    ],
)
def test_numbers(value: Any, text: str) -> None:
    assert number(value) == text
