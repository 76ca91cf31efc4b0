"""Calls side by side: the time that a simulated cluster takes."""

from __future__ import annotations

import time

import pytest

from creditgrid.core.task import Resources
from creditgrid.service.prediction.makespan import Batch, Running, makespan

ONE = Resources(1.0, 0.0)


def batch(level: int, n: int, seconds: float, resources: Resources = ONE, **values: int) -> Batch:
    return Batch(level, values.get("planned", n), n, seconds, resources, values.get("running", 0))


def test_three_fits_on_two_cpus_take_two_rounds() -> None:
    assert makespan([batch(0, 3, 10.0)], [], 2, 0) == 20.0
    assert makespan([batch(0, 4, 10.0)], [], 2, 0) == 20.0
    assert makespan([batch(0, 1, 10.0)], [], 2, 0) == 10.0
    assert makespan([], [], 2, 0) == 0.0


def test_a_fit_waits_for_its_training_and_not_for_all() -> None:
    trainings, fits = batch(0, 3, 10.0), batch(1, 6, 10.0)
    # Two trainings; then the fits of these and the third training: nine calls of ten seconds in two rows.
    assert makespan([trainings, fits], [], 2, 0) == 50.0
    assert makespan([trainings, fits], [], 100, 0) == 20.0
    assert makespan([trainings, fits], [], 1, 0) == 90.0


def test_what_is_done_and_what_runs_counts() -> None:
    left = [batch(0, 0, 10.0, planned=3, running=1), batch(1, 6, 10.0)]
    # Two trainings have ended and one has 4 s left: at first only the fits of the two can start.
    assert makespan(left, [Running(0, 4.0, ONE)], 3, 0) == 24.0
    assert makespan([batch(0, 0, 10.0, planned=1, running=1)], [Running(0, 4.0, ONE)], 3, 0) == 4.0


def test_calls_take_the_resources_that_they_ask_for() -> None:
    assert makespan([batch(0, 4, 10.0, Resources(2.0, 0.0))], [], 4, 0) == 20.0
    assert makespan([batch(0, 4, 10.0, Resources(1.0, 0.5))], [], 8, 1) == 20.0
    assert makespan([batch(0, 2, 10.0, Resources(64.0, 2.0))], [], 2, 1) == 20.0  # more than there is


def test_many_calls_take_little_time_to_simulate() -> None:
    many = [batch(0, 1, 5.0), batch(1, 300_000, 0.1), batch(2, 1_000_000, 0.01)]
    started = time.perf_counter()
    found = makespan(many, [], 10, 0)
    assert time.perf_counter() - started < 1.0
    assert found == pytest.approx((5.0 + 30_000 + 10_000) / 10, rel=0.05)


def test_calls_that_nothing_will_make_ready_are_added() -> None:
    """A level may have calls that failed: those above it wait, and are not left out."""
    assert makespan([batch(0, 0, 1.0, planned=2, running=2), batch(1, 2, 10.0)], [], 2, 0) == 20.0
