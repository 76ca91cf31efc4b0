"""Calls in flight: cancelled calls and calls that were taken back."""

from __future__ import annotations

from typing import Any

import pytest
from sweeping import House, both_databases, groups, one_cell_groups

from creditgrid.core.states import State
from creditgrid.service.scheduling import in_flight
from creditgrid.workers.runner import Advanced, Failed, Finished

SUCCEEDED, CANCELLED = State.SUCCEEDED, State.CANCELLED


def test_a_message_of_a_cancelled_call_changes_nothing(house: House, calls: dict[int, Any]) -> None:
    sweep = house.submit(**groups(1))
    house.step()
    (call,) = calls.values()
    house.control.cancel(sweep)
    house.runner.start_call(call.id)
    house.runner.work(call.id)
    house.runner.report(Advanced(call.id, 1, 1, ""), Finished(call.id, 1.0, "h", "cpu"), Failed(call.id, "e", "", True))
    house.step(3)
    assert house.counts(sweep) == {CANCELLED: 2}
    assert house.rows() == []


def test_a_call_that_is_cancelled_during_its_submission_is_cancelled_in_the_runner(
    house: House, calls: dict[int, Any]
) -> None:
    sweep = house.submit(**groups(1))
    submit = house.runner.submit

    def meanwhile(call: Any) -> None:
        house.control.cancel(sweep)
        submit(call)

    house.runner.submit = meanwhile
    house.step(2)
    assert not calls
    assert len(house.runner.cancelled) == 1
    assert house.counts(sweep) == {CANCELLED: 2}


@both_databases
def test_a_call_that_was_taken_back_and_lost_is_not_cancelled_when_it_runs_again(house: House) -> None:
    sweep = house.submit(**one_cell_groups(1))
    house.step()
    poll = house.runner.poll

    def meanwhile(timeout: float) -> list[Any]:
        house.runner.poll = poll
        house.control.pause(sweep)
        house.control.resume(sweep)
        house.runner.lose()
        return list(poll(timeout))

    house.runner.poll = meanwhile
    house.step()
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 1}
    assert house.runner.cancelled == []


@pytest.mark.parametrize(
    ("now", "left"),
    [
        (20.0, 80.0),  # 8 steps of 10 s
        (25.0, 75.0),  # no report yet, and none is due
        (30.0, 70.0),
        (50.0, 80.0),  # the step takes longer than those before
    ],
)
def test_the_time_left_follows_from_the_pace_between_reports(now: float, left: float) -> None:
    resumed, latest = (5, 0.0), (7, 20.0)
    assert in_flight._left(resumed, latest, 15, now) == pytest.approx(left)


def test_reports_of_short_steps_may_be_half_a_second_apart() -> None:
    assert in_flight._left((0, 0.0), (50, 0.5), 100, 0.95) == pytest.approx(0.05)
