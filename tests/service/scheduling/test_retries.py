"""Retries: what happens to calls that failed or were lost."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from sweeping import House, both_databases, groups, one_cell_groups

from creditgrid.core.states import State
from creditgrid.core.wire import TERMINAL_EVENT
from creditgrid.service.scheduling import scheduler
from creditgrid.service.scheduling.retries import LOSSES
from creditgrid.workers.runner import Failed, Lost

SUCCEEDED, FAILED, PENDING, QUEUED = State.SUCCEEDED, State.FAILED, State.PENDING, State.QUEUED


def test_a_failed_call_fails_its_cells_alone(house: House, calls: dict[int, Any]) -> None:
    sweep = house.submit(**groups(3))
    house.step()
    bad, *good = calls
    house.runner.fail(bad)
    house.step()
    assert house.counts(sweep) == {FAILED: 2, QUEUED: 4}
    assert not house.state(sweep).finished
    for call in good:
        house.runner.work(call)
    house.step(3)
    assert house.counts(sweep) == {FAILED: 2, SUCCEEDED: 4}
    assert house.state(sweep) is FAILED  # only when all its cells have ended
    (failure,) = house.failures.of(sweep)
    assert (failure.cause, failure.kind, failure.count, failure.skipped) == ("ValueError: on request", "noop", 2, 0)
    assert failure.traceback == "Traceback\nValueError: on request"


def test_transient_failures_are_tried_again_after_a_pause_that_doubles(
    house: House, calls: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(scheduler.time, "time", lambda: now)
    sweep = house.submit(axes={"x": [1]}, retry={"max": 3, "backoff_s": 10})
    for attempt, pause in ((1, 10.0), (2, 20.0), (3, 40.0)):
        house.step()
        (call,) = calls.values()
        assert call.attempt == attempt
        house.runner.start_call(call.id)
        house.runner.fail(call.id, transient=True, error="OSError: disk")
        house.step(2)
        assert house.counts(sweep) == {PENDING: 1}
        now += pause - 0.1
        house.step(2)
        assert not calls  # not yet
        now += 0.2
    house.step()
    (call,) = calls.values()
    assert call.attempt == 4
    house.runner.fail(call.id, transient=True, error="OSError: disk")
    house.step()
    assert house.state(sweep) is FAILED
    retried = [event.data for event in house.events(sweep) if event.type == "call.retried"]
    assert [data["attempt"] for data in retried] == [2, 3, 4]
    assert retried[0]["message"] == "1 noop failed (OSError: disk); attempt 2 in 10 s"
    (failure,) = house.failures.of(sweep)
    assert failure.attempt == 4


def test_rows_name_the_attempt_that_succeeded(house: House, calls: dict[int, Any]) -> None:
    sweep = house.submit(axes={"x": [1]}, retry={"max": 1, "backoff_s": 0})
    house.step()
    house.runner.fail(next(iter(calls)), transient=True)
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 1}
    assert [row["attempt"] for row in house.rows()] == [2]


@pytest.mark.parametrize("error", ["", "\n", "one\ntwo"])
def test_an_error_of_any_shape_is_shown(house: House, calls: dict[int, Any], error: str) -> None:
    sweep = house.submit(axes={"x": [1]}, retry={"max": 1, "backoff_s": 0})
    for transient in (True, False):
        house.step()
        house.runner.fail(next(iter(calls)), transient=transient, error=error)
        house.step(2)
    assert house.state(sweep) is FAILED
    assert house.failures.of(sweep)[0].cause in ("one", "failed")


def test_artifacts_saved_before_a_failure_are_kept(house: House, calls: dict[int, Any]) -> None:
    sweep = house.submit(axes={"x": [1]}, fixed={"base": "ok"}, retry={"max": 1, "backoff_s": 0})
    house.step()
    (call,) = calls.values()
    key = call.tasks[0].key
    house.runner.work(call.id)
    house.runner.poll(0)  # its end is never reported
    house.runner.report(Failed(call.id, "WorkerCrashedError", "", True, None, (key,)))
    house.step()
    assert [task.state for task in house.tasks.page(sweep, None, "", 5)[0]] == [SUCCEEDED]
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 1}
    assert [call.kind for call in house.runner.history] == ["noop_base", "noop"]


def test_a_call_that_fails_after_all_its_artifacts_are_stored_succeeds(house: House, calls: dict[int, Any]) -> None:
    sweep = house.submit(axes={"x": [1]}, fixed={"base": "ok"}, fail_fast=True)
    house.step()
    (base,) = calls.values()
    del calls[base.id]
    (stage,) = base.tasks
    house.store.save(stage.key, stage.payload(), {"one": np.ones(1, np.float32)}, {})
    house.runner.report(Failed(base.id, "OSError: after the last artifact", "", transient=False, stored=[stage.key]))
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 1}
    assert house.call_states()[base.id] is SUCCEEDED


def test_a_clock_that_is_set_back_delays_no_call(
    house: House, calls: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 2_000_000.0
    monkeypatch.setattr(scheduler.time, "time", lambda: now)
    sweep = house.submit(axes={"x": [1]}, retry={"max": 3, "backoff_s": 10})
    house.step()
    house.runner.fail(next(iter(calls)), transient=True)
    house.step(2)
    assert not calls
    now = 1_000_000.0  # eleven days back
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 1}
    view = house.sweeps.get(sweep)
    assert view.finished_at is not None
    assert view.finished_at < view.created_at  # as the clock has it


def test_calls_in_flight_run_again_after_the_runner_was_lost(house: House, calls: dict[int, Any]) -> None:
    sweep = house.submit(**groups(3, retry={"max": 1, "backoff_s": 0}))
    house.step()
    done, running, _ = calls
    house.runner.work(done)
    house.runner.start_call(running)
    house.step()
    house.runner.lose()
    house.step()
    assert "runner.lost" in house.event_types(sweep)
    assert house.counts(sweep)[SUCCEEDED] == 2
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 6}
    attempts = Counter((call.id, call.attempt) for call in house.runner.history)
    assert attempts[running, 2] == 1  # it was running, so the attempt counts
    assert sum(n for (call, attempt), n in attempts.items() if attempt == 1) == 4  # the queued one keeps it


def test_a_call_that_ends_the_cluster_each_time_fails(house: House, calls: dict[int, Any]) -> None:
    sweep = house.submit(axes={"x": [1]}, retry={"max": 2, "backoff_s": 0})
    for number in range(LOSSES):
        assert house.state(sweep) is not FAILED
        house.step()
        assert calls[1].attempt == number + 1
        house.runner.start_call(next(iter(calls)))
        house.step()
        house.runner.lose("the Ray driver ended with status 1")
        house.step()
    assert house.state(sweep) is FAILED
    assert house.failures.of(sweep)[0].cause == (
        "the Ray driver ended with status 1; the call was running during 10 cluster losses, and is not tried again"
    )
    house.step(3)
    assert not calls


def test_a_cluster_that_cannot_be_reached_costs_no_attempt(house: House, calls: dict[int, Any]) -> None:
    sweep = house.submit(axes={"x": [1]}, retry={"max": 0, "backoff_s": 0})
    for _ in range(10):
        house.step()
        assert len(calls) == 1
        house.runner.lose()
        house.step()
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 1}


def test_only_open_sweeps_get_the_event_of_a_lost_runner(house: House, calls: dict[int, Any]) -> None:
    document = groups(1, retry={"max": 1, "backoff_s": 0})
    one, two = house.submit(**document), house.submit(**document)
    house.step()
    house.runner.start_call(next(iter(calls)))
    house.step()
    house.control.cancel(one)
    house.runner.lose()
    house.step()
    assert house.event_types(one)[-1] == TERMINAL_EVENT
    assert "runner.lost" in house.event_types(two)
    house.drain()


def test_a_loss_of_the_runner_with_nothing_in_flight_is_no_problem(house: House) -> None:
    house.runner.report(Lost("the cluster is gone"))
    house.step(2)
    assert house.scheduler.problem() is None


@both_databases
def test_a_call_that_takes_too_long_is_stopped_tried_again_and_fails(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("creditgrid.service.scheduling.scheduler.time.monotonic", lambda: now)
    sweep = house.submit(**one_cell_groups(1, retry={"max": 1, "backoff_s": 0}, timeout_s={"measure": 5}))
    for attempt in (1, 2):
        house.step()
        (call,) = house.runner.calls.values()
        assert call.attempt == attempt
        house.runner.start_call(call.id)
        house.step()
        now += 4.9
        house.step()
        assert house.runner.calls
        now += 0.2
        house.step(2)
        assert house.runner.cancelled == [call.id] * attempt
    house.step(2)
    assert not house.runner.calls
    assert house.counts(sweep) == {FAILED: 1}
    (failure,) = house.failures.of(sweep)
    assert failure.cause == "timed out: noop took longer than 5 s, its timeout_s"
    assert failure.attempt == 2
    assert failure.command == f"creditgrid run-task {failure.key}"


@both_databases
def test_the_third_crash_of_a_cell_fails_it_alone(house: House) -> None:
    sweep = house.submit(axes={"x": list(range(300))}, retry={"max": 3, "backoff_s": 0})
    guilty = 17
    crashes = 0
    for _ in range(200):
        house.step()
        for number, call in list(house.runner.calls.items()):
            house.runner.start_call(number)
            if any(task.params["x"] == guilty for task in call.tasks):
                house.runner.crash(number)
                crashes += 1
            else:
                house.runner.work(number)
        if not house.open_calls():
            break
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 299, FAILED: 1}
    (cell,), _ = house.cells.page(sweep, FAILED, -1, 10)
    assert cell.params["x"] == guilty
    (failure,) = house.failures.of(sweep)
    assert failure.cause == "the worker died (crash 3: it is not tried again)"
    assert failure.count == 1
    assert crashes == 4  # of the whole call twice, of a piece of ten cells, and of the cell alone
    assert len(house.rows()) == 299


@both_databases
def test_a_call_of_one_cell_fails_at_its_third_crash_whatever_its_retries(house: House) -> None:
    sweep = house.submit(**one_cell_groups(1, retry={"max": 100, "backoff_s": 0}))
    for _ in range(3):
        house.step()
        house.runner.crash(next(iter(house.runner.calls)))
        house.step()
    assert house.counts(sweep) == {FAILED: 1}
    assert [call.attempt for call in house.runner.history] == [1, 2, 3]


@both_databases
def test_a_kind_that_always_crashes_does_not_split_without_end(house: House) -> None:
    sweep = house.submit(axes={"x": list(range(1200))}, retry={"max": 3, "backoff_s": 0})
    for _ in range(400):
        house.step()
        for number in list(house.runner.calls):
            house.runner.crash(number)
        if not house.open_calls():
            break
    assert house.counts(sweep) == {FAILED: 1200}
    assert len(house.runner.history) < 1000  # fewer than one for each cell


@both_databases
def test_the_crashing_cell_of_each_group_is_found(house: House) -> None:
    axes = {"group": list(range(6)), "x": list(range(40))}
    sweep = house.submit(axes=axes, retry={"max": 5, "backoff_s": 0})
    for _ in range(100):
        house.step()
        for number, call in list(house.runner.calls.items()):
            guilty = any(task.params["x"] == 17 for task in call.tasks)
            (house.runner.crash if guilty else house.runner.work)(number)
        if not house.open_calls():
            break
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 234, FAILED: 6}


@both_databases
def test_a_call_whose_worker_alone_misses_an_input_fails_in_the_end(house: House) -> None:
    house.submit(axes={"x": [0]}, fixed={"base": "ok"})
    house.drain()
    sweep = house.submit(axes={"x": [1]}, fixed={"base": "ok"}, retry={"max": 1, "backoff_s": 0})
    (key,) = house.store.keys()
    for _ in range(LOSSES):
        house.step()
        (number,) = house.runner.calls
        del house.runner.calls[number]
        house.runner.report(Failed(number, "not there", "", transient=False, missing=[key]))
        house.step()
    assert house.counts(sweep) == {FAILED: 1}
