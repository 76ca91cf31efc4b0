"""Completion: sweeps stop at their failure limit or when they are cancelled, and finish when no cell is open."""

from __future__ import annotations

from typing import Any

from sweeping import House, groups

from creditgrid.core.states import State
from creditgrid.core.wire import TERMINAL_EVENT

SUCCEEDED, FAILED, CANCELLED = State.SUCCEEDED, State.FAILED, State.CANCELLED


def test_every_sweep_that_needed_a_failed_call_fails(house: House, calls: dict[int, Any]) -> None:
    one, two = house.submit(**groups(1)), house.submit(**groups(1))
    house.step()
    house.runner.fail(next(iter(calls)))
    house.step()
    assert (house.state(one), house.state(two)) == (FAILED, FAILED)
    assert house.event_types(two)[-2:] == ["call.failed", TERMINAL_EVENT]


def test_fail_fast_stops_at_the_first_failure(house: House, calls: dict[int, Any]) -> None:
    sweep = house.submit(**groups(3, fail_fast=True))
    house.step()
    first, *others = calls
    house.runner.fail(first)
    house.step(2)
    assert house.state(sweep) is FAILED
    assert house.counts(sweep) == {FAILED: 2, CANCELLED: 4}
    assert sorted(house.runner.cancelled) == sorted(others)
    assert house.events(sweep)[-1].data["message"] == "failed: fail_fast: stopped at the first failure"


def test_max_failed_is_how_many_cells_may_fail(house: House, calls: dict[int, Any]) -> None:
    sweep = house.submit(**groups(4, max_failed=3))
    house.step()
    one, two, *_ = calls
    house.runner.fail(one)
    house.step()
    assert not house.state(sweep).finished  # two failed cells are within the limit
    house.runner.fail(two)
    house.step()
    assert house.state(sweep) is FAILED
    assert house.counts(sweep) == {FAILED: 4, CANCELLED: 4}
    assert house.events(sweep)[-1].data["message"] == "failed: 4 cells failed, max_failed is 3"


def test_cancel_ends_the_sweep_at_once_and_keeps_its_results(house: House, calls: dict[int, Any]) -> None:
    sweep = house.submit(**groups(3))
    house.step()
    done, running, queued = calls
    house.runner.work(done)
    house.step(2)
    house.runner.start_call(running)
    house.step()
    house.control.cancel(sweep)
    assert house.state(sweep) is CANCELLED
    assert house.counts(sweep) == {SUCCEEDED: 2, CANCELLED: 4}
    house.step(2)
    assert sorted(house.runner.cancelled) == sorted([running, queued])
    assert not calls
    assert len(house.rows()) == 2
    assert house.event_types(sweep)[-1] == TERMINAL_EVENT
    house.control.cancel(sweep)  # again: nothing to do
    assert house.event_types(sweep).count(TERMINAL_EVENT) == 1


def test_cancel_keeps_what_another_sweep_needs(house: House, calls: dict[int, Any]) -> None:
    one = house.submit(**groups(2, fixed={"base": "ok"}))
    two = house.submit(**groups(1, fixed={"base": "ok"}))
    house.step()
    (base,) = calls
    house.runner.start_call(base)
    house.step()
    house.control.cancel(one)
    house.step(2)
    assert house.runner.cancelled == []
    house.drain()
    assert house.counts(one) == {CANCELLED: 4}
    assert house.counts(two) == {SUCCEEDED: 2}
    assert len(house.rows()) == 2
    assert house.event_types(one)[-1] == TERMINAL_EVENT  # no event of calls that run for the other sweep
