"""The load: its figures are right, and a small run of it against a real service."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from load.record import Record, by_route, quantile

ROOT = Path(__file__).parent.parent
ROUTES = ("status", "list", "cells", "summary", "submit", "short SQL", "events")


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.9, 90), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_a_quantile_is_a_measured_value(share: float, value: int) -> None:
    assert quantile([float(n) for n in range(100, 0, -1)], share) == value


def test_a_quantile_of_nothing_is_zero() -> None:
    assert quantile([], 0.5) == 0


def test_the_table_shows_rates_percentiles_and_statuses() -> None:
    record = Record(seconds=2.0)
    for number in range(1, 11):
        record.answer("status", 200, number / 1000)
    record.answer("status", 503, 0.5)
    record.no_answer("status", "it broke")
    assert by_route(record).splitlines()[2] == (
        "| status | 12 | 6.0 | 6.0 | 10.0 | 500.0 | 500.0 | 200 × 10, 503 × 1, no answer × 1 |"
    )
    assert record.errors() == {"503": 1, "no answer": 1}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_small_load_is_answered_and_reported() -> None:
    """``make load`` measures more; here is nothing about how fast a machine is."""
    command = [sys.executable, "-m", "tests.load", "--cells", "2000", "--seconds", "3", "--runner", "local"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            said, _ = process.communicate(timeout=380)
        finally:
            process.terminate()  # it ends all its processes
    text = said.decode()
    print(text)
    assert process.returncode == 0, text
    assert [route for route in ROUTES if f"| {route} |" not in text] == []
    assert "exit status 0" in text
