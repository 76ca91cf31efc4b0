"""What users ask of sweeps while they run: pause, resume, extend, priorities, limits of time."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sweeping import House, ScriptedRunner

from creditgrid.core.errors import ConflictError, NotFoundError, SpecError
from creditgrid.core.states import State
from creditgrid.core.wire import TERMINAL_EVENT, Extension
from creditgrid.service.ledger.counts import sweeps_needing
from creditgrid.service.scheduling import dispatch
from creditgrid.service.scheduling.retries import LOSSES
from creditgrid.workers.runner import Failed

PENDING, QUEUED, RUNNING = State.PENDING, State.QUEUED, State.RUNNING
SUCCEEDED, CACHED, FAILED = State.SUCCEEDED, State.CACHED, State.FAILED
CANCELLED, SKIPPED = State.CANCELLED, State.SKIPPED


@pytest.fixture
def house_url(url: str) -> str:
    """Each database: these tests run in both."""
    return url


def groups(n: int, first: int = 0, **more: Any) -> dict[str, Any]:
    """So many calls of one cell."""
    return {"axes": {"group": list(range(first, first + n))}, **more, "fixed": {"x": 1, **more.get("fixed", {})}}


def xs(house: House) -> list[int]:
    return [call.tasks[0].params["group"] for call in house.runner.history]


# -- pause and resume ----------------------------------------------------------------------------------------------


def test_a_paused_sweep_ends_what_runs_and_begins_nothing(house: House) -> None:
    sweep = house.submit(**groups(3))
    house.step()
    runs, *_ = house.runner.calls
    house.runner.start_call(runs)
    house.step()
    assert house.control.pause(sweep)
    house.step(2)
    assert list(house.runner.calls) == [runs]  # what had not begun was taken back
    house.runner.work(runs)
    house.step(3)
    assert not house.runner.calls
    view = house.sweeps.get(sweep)
    assert (view.paused, view.counts, view.state) == (True, {SUCCEEDED: 1, PENDING: 2}, RUNNING)
    assert [condition.type for condition in view.conditions] == ["paused"]
    assert not house.control.pause(sweep)
    assert house.control.resume(sweep)
    assert not house.control.resume(sweep)
    house.drain()
    view = house.sweeps.get(sweep)
    assert (view.paused, view.counts, view.conditions) == (False, {SUCCEEDED: 3}, [])
    types = house.event_types(sweep)
    assert types.count("sweep.paused") == types.count("sweep.resumed") == 1
    assert max(call.attempt for call in house.runner.history) == 1  # being taken back is no failure
    assert "call.retried" not in types


def test_a_sweep_paused_at_once_begins_nothing_and_a_restart_changes_nothing(house: House) -> None:
    sweep = house.submit(**groups(2))
    house.control.pause(sweep)
    house.step(3)
    again = house.restarted()
    again.scheduler.recover()
    again.step(3)
    assert not house.runner.history
    assert not again.runner.history
    again.control.resume(sweep)
    again.drain()
    assert again.counts(sweep) == {SUCCEEDED: 2}
    again.close()


def test_what_another_sweep_needs_of_a_paused_one_runs_and_is_told_to_both(house: House) -> None:
    one = house.submit(**groups(3))
    two = house.submit(**groups(2, 1))
    house.control.pause(one)
    house.drain_sweep(two)
    assert house.state(two) is SUCCEEDED
    assert house.counts(one) == {SUCCEEDED: 2, PENDING: 1}
    house.control.resume(one)
    house.drain()
    assert house.counts(one) == {SUCCEEDED: 3}
    assert sorted(xs(house)) == [0, 1, 2]


def test_both_owners_paused_and_the_second_resumed(house: House) -> None:
    one, two = house.submit(**groups(2)), house.submit(**groups(2))
    house.control.pause(one)
    house.control.pause(two)
    house.step(2)
    assert not house.runner.history
    house.control.resume(two)
    house.drain()
    assert house.state(one) is house.state(two) is SUCCEEDED  # nothing of the paused one was left to do


def test_a_cancelled_owner_leaves_its_calls_to_a_paused_sweep(house: House) -> None:
    one, two = house.submit(**groups(2)), house.submit(**groups(2))
    house.control.pause(two)
    house.control.cancel(one)
    house.step(3)
    assert not house.runner.history
    assert house.counts(two) == {PENDING: 2}
    house.control.resume(two)
    house.drain()
    assert house.counts(two) == {SUCCEEDED: 2}
    assert house.counts(one) == {CANCELLED: 2}


def test_an_ended_sweep_is_neither_paused_nor_resumed_and_an_unknown_one_is_told(house: House) -> None:
    sweep = house.submit(**groups(1))
    house.control.pause(sweep)
    house.control.cancel(sweep)
    assert not house.sweeps.get(sweep).paused
    for ask in (house.control.pause, house.control.resume):
        with pytest.raises(ConflictError, match="has ended"):
            ask(sweep)
        with pytest.raises(NotFoundError):
            ask("nope")
    assert not house.control.cancel(sweep)
    assert house.event_types(sweep).count(TERMINAL_EVENT) == 1


# -- extend --------------------------------------------------------------------------------------------------------


def test_an_extension_adds_cells_and_leaves_the_others(house: House) -> None:
    sweep = house.submit(axes={"x": [1, 2], "group": [0, 1]})
    house.drain()
    before = house.sql_tables.cell_index(sweep).to_pylist()
    rows = {row["cell"]: row for row in house.rows()}
    assert house.control.extend(sweep, Extension(axes={"x": [3]}, include=[{"x": 9}])) == 3
    assert house.state(sweep) is PENDING
    assert house.counts(sweep) == {SUCCEEDED: 4, PENDING: 3}
    house.drain()
    view = house.sweeps.get(sweep)
    assert (view.counts, view.cells) == ({SUCCEEDED: 7}, 7)
    assert view.spec is not None
    assert view.spec["axes"] == {"x": [1, 2, 3], "group": [0, 1]}
    assert view.spec["include"] == [{"x": 9}]
    assert house.sql_tables.cell_index(sweep).to_pylist()[:4] == before
    found, _ = house.cells.page(sweep, None, -1, 100)
    assert [(cell.params["x"], cell.params["group"]) for cell in found] == [
        (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1), (9, 0)
    ]  # fmt: skip
    assert {row["cell"]: row for row in house.rows() if row["cell"] in rows} == rows
    assert len(house.runner.history) == 4
    assert house.event_types(sweep).count("sweep.extended") == 1
    assert house.event_types(sweep).count(TERMINAL_EVENT) == 2


def test_a_running_sweep_is_extended_and_its_calls_run_on(house: House) -> None:
    sweep = house.submit(axes={"x": [1, 2]}, fixed={"base": "ok"})
    house.step()
    (base,) = house.runner.calls
    house.runner.start_call(base)
    house.step()
    house.control.extend(sweep, Extension(axes={"x": [3]}))
    assert house.runner.calls.keys() == {base}
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 3}
    assert Counter(call.kind for call in house.runner.history) == {"noop_base": 1, "noop": 2}
    (stage,) = house.tasks.page(sweep, None, "", 9)[0]
    assert stage.state is SUCCEEDED  # as its sweep made it, though a part of the sweep came later


def test_extensions_add_up_and_a_retry_finds_each_cell_by_its_number(house: House) -> None:
    sweep = house.submit(axes={"x": [1], "behaviour": ["ok"]})
    house.control.extend(sweep, Extension(axes={"x": [2]}))
    house.control.extend(sweep, Extension(axes={"behaviour": ["raise"]}, include=[{"x": 7, "behaviour": "raise"}]))
    house.drain()
    assert sum(house.counts(sweep).values()) == 5
    failed, _ = house.cells.page(sweep, FAILED, -1, 100)
    assert sorted(cell.params["x"] for cell in failed) == [1, 2, 7]
    before = house.sql_tables.cell_index(sweep).to_pylist()
    assert house.control.retry(sweep) == 3
    house.drain()
    assert house.sql_tables.cell_index(sweep).to_pylist() == before
    assert house.counts(sweep) == {SUCCEEDED: 2, FAILED: 3}


def test_an_extension_by_what_is_there_changes_nothing(house: House) -> None:
    sweep = house.submit(axes={"x": [1, 2]})
    house.drain()
    view, events = house.sweeps.get(sweep), house.event_types(sweep)
    assert house.control.extend(sweep, Extension(axes={"x": [2]})) == 0
    assert house.sweeps.get(sweep) == view
    assert house.event_types(sweep) == events


def test_extended_cells_that_others_computed_are_cached(house: House) -> None:
    house.submit(axes={"x": [1, 2, 3]})
    house.drain()
    sweep = house.submit(axes={"x": [1]})
    house.control.extend(sweep, Extension(axes={"x": {"range": [2, 4, 1]}}))
    assert house.state(sweep) is CACHED
    assert house.counts(sweep) == {CACHED: 3}


@pytest.mark.parametrize(
    ("extension", "pointer", "text"),
    [
        ({"axes": {"y": [1.0]}}, "/axes/y", "no axis 'y'"),
        ({"axes": {"bsae": ["ok"]}}, "/axes/bsae", "no axis 'bsae'"),
        ({"axes": {"base": ["ok"]}}, "/axes/base", "base is fixed in this sweep"),
        ({"axes": {"x": [3, "four"]}}, "/axes/x/1", "valid integer"),
        ({"axes": {"x": {"range": [0.5, 2.5, 1]}}}, "/axes/x", "valid integer"),
        ({"axes": {"x": []}}, "/axes/x", "empty"),
        ({"include": [{"x": 4}, {"z": 1}]}, "/include/1/z", "no parameter 'z'"),
        ({}, "", "new values in axes, or cells in include"),
    ],
)
def test_an_extension_that_makes_no_sense_is_refused_whole(
    house: House, extension: dict[str, Any], pointer: str, text: str
) -> None:
    sweep = house.submit(axes={"x": [1, 2]}, fixed={"base": "ok"}, include=[{"x": 5}])
    before = house.sweeps.get(sweep)
    with pytest.raises(SpecError) as refused:
        house.control.extend(sweep, Extension.model_validate(extension))
    fault = refused.value.faults[0]
    assert fault.pointer == pointer
    assert text in fault.detail
    assert house.sweeps.get(sweep) == before
    house.drain()


def test_zipped_axes_are_extended_together(house: House) -> None:
    sweep = house.submit(axes={"x": [1, 2], "y": [1.0, 2.0]}, zip=[["x", "y"]])
    with pytest.raises(SpecError):
        house.control.extend(sweep, Extension(axes={"x": [3]}))
    assert house.control.extend(sweep, Extension(axes={"x": [3], "y": [3.0]})) == 1
    house.drain()
    assert sorted((row["x"], row["y"]) for row in house.rows()) == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_cancelled_sweep_is_not_extended(house: House) -> None:
    sweep = house.submit(axes={"x": [1]})
    house.control.cancel(sweep)
    with pytest.raises(ConflictError, match="was cancelled: submit a new one"):
        house.control.extend(sweep, Extension(axes={"x": [3]}))
    with pytest.raises(NotFoundError):
        house.control.extend("nope", Extension(axes={"x": [3]}))


# -- turns ---------------------------------------------------------------------------------------------------------


def test_an_urgent_sweep_takes_the_next_free_slot(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedRunner, "cpus", 2.0)
    monkeypatch.setattr(dispatch, "MOST_AHEAD", 4)
    house.submit(**groups(10))
    house.step()
    one, two = list(house.runner.calls)
    house.runner.start_call(one)
    house.runner.start_call(two)
    house.step(2)
    assert len(house.runner.calls) == 4  # two run, two wait in the runner's own queue
    house.submit(**groups(3, 100), priority=5)
    house.step(2)
    assert set(house.runner.calls) >= {one, two}  # what runs is left alone
    waiting = [call for number, call in house.runner.calls.items() if number not in (one, two)]
    assert [call.tasks[0].params["group"] for call in waiting] == [100, 101]
    house.drain()
    assert max(call.attempt for call in house.runner.history) == 1


def test_sweeps_of_one_priority_take_turns(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedRunner, "cpus", 1.0)
    monkeypatch.setattr(dispatch, "MOST_AHEAD", 1)
    house.submit(**groups(6))
    house.submit(**groups(3, 100))
    house.submit(**groups(3, 200))
    for _ in range(12):
        house.step()
        (number,) = house.runner.calls
        house.runner.start_call(number)
        house.step()
        others = [call for call in house.runner.calls if call != number]
        assert len(others) <= 1
        house.runner.work(number)
        house.step()
        for call in others:
            house.runner.work(call)
        if not house.open_calls():
            break
    # Each three of the first nine turns served each sweep once.
    assert [sorted(x // 100 for x in xs(house)[i : i + 3]) for i in (0, 3, 6)] == [[0, 1, 2]] * 3


# -- limits --------------------------------------------------------------------------------------------------------


def test_a_call_that_takes_too_long_is_stopped_tried_again_and_failed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("creditgrid.service.scheduling.scheduler.time.monotonic", lambda: now)
    sweep = house.submit(**groups(1, retry={"max": 1, "backoff_s": 0}, timeout_s={"measure": 5}))
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


def test_a_timeout_of_an_unknown_kind_is_refused(house: House) -> None:
    for timeout, pointer in (({"trian": 5}, "/timeout_s/trian"), ({"measure": 0}, "/timeout_s/measure")):
        with pytest.raises(SpecError) as refused:
            house.submit(**groups(1, timeout_s=timeout))
        assert [fault.pointer for fault in refused.value.faults] == [pointer]


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


def test_a_lone_cell_that_crashes_three_times_fails_whatever_its_retries(house: House) -> None:
    sweep = house.submit(**groups(1, retry={"max": 100, "backoff_s": 0}))
    for _ in range(3):
        house.step()
        house.runner.crash(next(iter(house.runner.calls)))
        house.step()
    assert house.counts(sweep) == {FAILED: 1}
    assert [call.attempt for call in house.runner.history] == [1, 2, 3]


def test_a_kind_that_always_crashes_does_not_split_without_end(house: House) -> None:
    sweep = house.submit(axes={"x": list(range(1200))}, retry={"max": 3, "backoff_s": 0})
    for _ in range(400):
        house.step()
        for number in list(house.runner.calls):
            house.runner.crash(number)
        if not house.open_calls():
            break
    assert house.counts(sweep) == {FAILED: 1200}
    assert len(house.runner.history) < 1000  # and not one for each cell


def test_what_was_skipped_is_counted_with_its_own_cause(house: House) -> None:
    sweep = house.submit(
        axes={"x": [1, 2, 3]}, fixed={"base": "raise"}, include=[{"x": 4, "base": "ok", "behaviour": "raise"}]
    )
    house.drain()
    stage, cell = sorted(house.failures.of(sweep), key=lambda failure: -failure.skipped)
    assert (stage.kind, stage.count, stage.skipped) == ("noop_base", 1, 3)
    assert (cell.kind, cell.count, cell.skipped) == ("noop", 1, 0)
    assert house.counts(sweep) == {SKIPPED: 3, FAILED: 1}


def test_a_sweep_that_stopped_at_its_failures_says_why_and_a_retry_begins_all_it_stopped(house: House) -> None:
    document = {"axes": {"group": [0, 1], "x": [1]}, "fixed": {"behaviour": "raise"}, "fail_fast": True}
    sweep = house.submit(**document)
    house.step()
    house.runner.work(next(iter(house.runner.calls)))
    house.step(2)
    view = house.sweeps.get(sweep)
    assert view.counts == {FAILED: 1, CANCELLED: 1}
    assert [(c.type, c.message) for c in view.conditions] == [("stopped", "fail_fast: stopped at the first failure")]
    assert house.control.retry(sweep) == 2
    assert house.sweeps.get(sweep).conditions == []
    house.drain()


# -- whose calls ---------------------------------------------------------------------------------------------------


def test_a_call_whose_owner_has_ended_goes_to_who_needs_it(house: House) -> None:
    one = house.submit(include=[{"x": 1, "base": "ok"}, {"x": 2, "base": "raise"}])
    two = house.submit(include=[{"x": 2, "base": "raise"}], priority=5)
    house.step()
    for number in list(house.runner.calls):
        house.runner.work(number)
    house.step(2)
    assert house.state(two) is FAILED
    (number,) = house.runner.calls
    house.runner.start_call(number)
    house.step()
    house.runner.lose()
    house.step()
    house.check()
    house.drain()
    assert house.counts(one) == {SUCCEEDED: 1, SKIPPED: 1}


def test_calls_of_ended_owners_are_handed_over_at_the_start(tmp_path: Path, no_pauses: None) -> None:
    house = House(tmp_path)
    one, two = house.submit(**groups(2)), house.submit(**groups(2))
    with house.ledger.write() as connection:
        connection.exec_driver_sql(f"UPDATE sweeps SET state = 'cancelled' WHERE id = '{one}'")
        connection.exec_driver_sql(f"UPDATE cells SET state = 'cancelled' WHERE sweep = '{one}'")
    again = House(tmp_path)
    again.scheduler.recover()
    again.drain()
    assert again.counts(two) == {SUCCEEDED: 2}
    again.close()
    house.close()


def test_an_extended_sweep_that_is_paused_takes_nothing_from_one_that_runs(house: House) -> None:
    one = house.submit(**groups(2), priority=1)
    house.control.pause(one)
    two = house.submit(**groups(2))
    house.control.extend(one, Extension(axes={"group": [7]}))
    house.check()
    house.drain_sweep(two)
    assert house.counts(one) == {SUCCEEDED: 2, PENDING: 1}
    house.control.resume(one)
    house.drain()


def test_a_sweep_does_not_inherit_a_stage_that_failed_for_another(house: House) -> None:
    document = {"axes": {"x": [1]}, "fixed": {"base": "ok"}}
    one = house.submit(**document)
    house.step()
    (stage,) = house.runner.calls
    house.runner.start_call(stage)
    house.step()
    house.control.pause(one)
    house.runner.fail(stage)
    house.step(2)
    two = house.submit(**document)
    house.drain_sweep(two)
    assert house.counts(two) == {SUCCEEDED: 1}


@pytest.mark.parametrize("then", ["cancel", "pause"])
def test_what_is_made_again_is_everybodys_who_needs_it(house: House, then: str) -> None:
    house.submit(axes={"x": [0]}, fixed={"base": "ok"})
    house.drain()
    document = {"axes": {"x": [1]}, "fixed": {"base": "ok"}}
    one = house.submit(**document)
    house.step()
    two = house.submit(**document)
    (key,) = house.store.keys()
    shutil.rmtree(house.store.path(key))
    house.runner.work(next(iter(house.runner.calls)))  # it misses its input
    house.step()
    getattr(house.control, then)(one)
    house.check()
    house.drain_sweep(two)
    assert house.counts(two) == {SUCCEEDED: 1}


def test_a_call_that_was_taken_back_and_begins_again_is_not_stopped_for_that(house: House) -> None:
    sweep = house.submit(**groups(1))
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


def test_thousands_of_calls_are_cancelled_in_a_moment(house: House) -> None:
    sweep = house.submit(**groups(3000))
    other = house.submit(**groups(5))
    house.step()
    flying = list(house.runner.calls)
    began = time.process_time()
    house.control.cancel(sweep)
    assert time.process_time() - began < 2
    house.step()
    assert sorted(house.runner.cancelled) == sorted(set(flying) - set(sorted(house.call_states())[:5]))
    assert house.counts(sweep) == {CANCELLED: 3000}
    house.drain()
    assert house.counts(other) == {SUCCEEDED: 5}


def test_a_cancel_that_comes_while_an_extension_is_planned_holds(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = house.submit(axes={"x": [1]})
    prepare = house.planner.prepare

    def meanwhile(*documents: Any) -> Any:
        house.control.cancel(sweep)
        return prepare(*documents)

    monkeypatch.setattr(house.planner, "prepare", meanwhile)
    with pytest.raises(ConflictError, match="was cancelled"):
        house.control.extend(sweep, Extension(axes={"x": [2]}))
    assert house.state(sweep) is CANCELLED


def test_calls_that_need_a_gpu_do_not_keep_the_others_waiting(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedRunner, "cpus", 2.0)
    monkeypatch.setattr(ScriptedRunner, "gpus", 1.0)
    house.submit(**groups(10), resources={"measure": {"gpu": 1}})
    house.step()
    busy = list(house.runner.calls)
    house.runner.start_call(busy[0])
    house.step(2)
    house.submit(**groups(10, 100))
    house.step(2)
    assert sum(call.tasks[0].params["group"] >= 100 for call in house.runner.calls.values()) == 2
    house.drain()


def test_an_urgent_sweep_takes_nothing_back_that_waits_for_something_else(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScriptedRunner, "cpus", 2.0)
    monkeypatch.setattr(ScriptedRunner, "gpus", 1.0)
    house.submit(**groups(4))
    house.step()
    assert len(house.runner.calls) == 2
    house.submit(**groups(5, 100), resources={"measure": {"gpu": 1}}, priority=5)
    house.step(3)
    assert house.runner.cancelled == []
    house.drain()


def test_crashing_cells_of_many_groups_are_each_found(house: House) -> None:
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


def test_a_lost_input_is_made_again_whatever_the_retries(house: House) -> None:
    house.submit(axes={"x": [0]}, fixed={"base": "ok"})
    house.drain()
    sweep = house.submit(axes={"x": [1]}, fixed={"base": "ok"}, retry={"max": 0, "backoff_s": 0})
    house.step()
    (key,) = house.store.keys()
    shutil.rmtree(house.store.path(key))
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 1}


def test_a_retried_sweep_does_not_wait_for_what_a_user_cancelled(house: House) -> None:
    one = house.submit(**groups(2))
    two = house.submit(**groups(2))
    house.step()
    first, second = house.runner.calls
    house.runner.fail(first)
    house.step()
    house.control.cancel(two)
    house.control.retry(two)  # the failed cell, and not the one that was cancelled
    house.control.pause(one)
    house.check()
    with house.ledger.read() as connection:
        assert sweeps_needing(connection, second) == [one]
    house.drain_sweep(two)
    assert house.counts(two) == {SUCCEEDED: 1, CANCELLED: 1}
    house.control.resume(one)
    house.drain()


def test_a_sweep_that_shares_what_runs_is_running(house: House) -> None:
    house.submit(**groups(1))
    house.step()
    house.runner.start_call(next(iter(house.runner.calls)))
    house.step()
    two = house.submit(**groups(1))
    assert (house.state(two), house.counts(two)) == (RUNNING, {RUNNING: 1})
    house.drain()


def test_an_input_that_is_missing_for_the_worker_alone_comes_to_an_end(house: House) -> None:
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
