"""The scheduler: every task once, every row once, and nothing lost, whatever happens between two of its steps."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa
import torch
from deltalake.exceptions import DeltaError
from sweeping import Crash, House, ScriptedRunner, quick

from creditgrid.core.errors import ConflictError, NotFoundError, SpecError
from creditgrid.core.experiments import registry as registries
from creditgrid.core.experiments.registry import Registry, registry
from creditgrid.core.states import State
from creditgrid.core.wire import TERMINAL_EVENT
from creditgrid.service import control
from creditgrid.service.ledger import tables, transitions
from creditgrid.service.scheduling import dispatch, row_commits, scheduler
from creditgrid.service.scheduling.retries import LOSSES
from creditgrid.workers.artifacts import TENSORS, ArtifactStore
from creditgrid.workers.local_runner import LocalRunner
from creditgrid.workers.runner import Advanced, Failed, Finished, Lost, Started

SUCCEEDED, CACHED, FAILED = State.SUCCEEDED, State.CACHED, State.FAILED
CANCELLED, SKIPPED, PENDING = State.CANCELLED, State.SKIPPED, State.PENDING
QUEUED, RUNNING = State.QUEUED, State.RUNNING


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    with quick(monkeypatch):
        yield
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(mode)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.check()
    made.close()


@pytest.fixture
def calls(house: House) -> dict[int, Any]:
    """The calls that the runner has."""
    assert isinstance(house.runner, ScriptedRunner)
    return house.runner.calls


def groups(count: int, **changes: Any) -> dict[str, Any]:
    """A sweep of this many calls of two cells each."""
    return {"axes": {"group": list(range(count)), "x": [1, 2]}, **changes}


# -- the way of a sweep --------------------------------------------------------------------------------------------


def test_a_sweep_goes_from_pending_over_running_to_succeeded(house: House, calls: dict[int, Any]) -> None:
    sweep = house.submit(**groups(1))
    assert house.state(sweep) is PENDING
    assert house.counts(sweep) == {PENDING: 2}
    house.step()
    (call,) = calls
    assert house.counts(sweep) == {QUEUED: 2}
    house.runner.begin(call)
    house.step()
    assert house.state(sweep) is RUNNING
    assert house.counts(sweep) == {RUNNING: 2}
    house.runner.say(Advanced(call, 1, 4, "half of a half"))
    house.step()
    (active,) = house.sweeps.get(sweep).active
    assert (active.call, active.kind, active.tasks, active.done, active.total, active.note) == (
        call, "noop", 2, 1, 4, "half of a half",
    )  # fmt: skip
    house.runner.work(call)
    house.step(2)
    assert house.state(sweep) is SUCCEEDED
    assert house.counts(sweep) == {SUCCEEDED: 2}
    assert sorted(row["twice"] for row in house.rows()) == [2.0, 4.0]
    assert {row["sweep"] for row in house.rows()} == {sweep}
    assert house.event_types(sweep) == [
        "sweep.created",
        "call.started",  # once, though the runner reported it twice
        "call.finished",
        TERMINAL_EVENT,
    ]


def test_stages_run_before_the_cells_that_stand_on_them(house: House, calls: dict[int, Any]) -> None:
    sweep = house.submit(**groups(2, fixed={"base": "ok"}))
    house.step(3)
    assert [call.kind for call in calls.values()] == ["noop_base"]
    (base,) = calls
    house.runner.work(base)
    house.step()
    (stage,) = house.tasks.page(sweep, None, "", 10)[0]
    assert (stage.state, stage.bytes) == (SUCCEEDED, len(house.store.read(stage.key)))
    house.step()
    assert [call.kind for call in calls.values()] == ["noop", "noop"]
    assert all(list(call.inputs) == [stage.key] for call in calls.values())
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 4}


def test_a_second_sweep_runs_nothing_and_says_cached(house: House) -> None:
    house.submit(**groups(2, fixed={"base": "ok"}))
    house.drain()
    before = len(house.runner.history)
    again = house.submit(**groups(2, fixed={"base": "ok"}))
    assert house.state(again) is CACHED  # at once
    assert house.counts(again) == {CACHED: 4}
    assert house.event_types(again) == ["sweep.created", TERMINAL_EVENT]
    house.step(3)
    assert len(house.runner.history) == before


def test_a_sweep_of_old_and_new_cells_runs_the_new_ones(house: House) -> None:
    house.submit(axes={"x": [1, 2]})
    house.drain()
    wider = house.submit(axes={"x": [1, 2, 3]})
    house.drain()
    assert house.counts(wider) == {CACHED: 2, SUCCEEDED: 1}
    assert house.state(wider) is SUCCEEDED
    assert [len(call.tasks) for call in house.runner.history] == [2, 1]


def test_a_cached_row_needs_no_stage_but_a_new_cell_makes_a_lost_one_again(house: House) -> None:
    first = house.submit(axes={"x": [1]}, fixed={"base": "ok"})
    house.drain()
    (stage,) = house.tasks.page(first, None, "", 10)[0]
    house.store.path(stage.key).rename(house.root / "gone")
    assert house.state(house.submit(axes={"x": [1]}, fixed={"base": "ok"})) is CACHED
    second = house.submit(axes={"x": [1, 2]}, fixed={"base": "ok"})
    house.drain()
    assert house.counts(second) == {CACHED: 1, SUCCEEDED: 1}
    assert [call.kind for call in house.runner.history] == ["noop_base", "noop", "noop_base", "noop"]


def test_urgent_sweeps_overtake_and_old_ones_come_first(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedRunner, "cpus", 2.0)
    monkeypatch.setattr(dispatch, "MOST_AHEAD", 2)
    old = house.submit(axes={"x": [1]}, fixed={"group": 1})
    new = house.submit(axes={"x": [2]}, fixed={"group": 2})
    urgent = house.submit(axes={"x": [3]}, fixed={"group": 3}, priority=7)
    house.step()
    assert [call.stamp["sweep"] for call in house.runner.history] == [urgent, old]
    house.step(3)
    assert len(house.runner.calls) == 2
    house.runner.work(next(iter(house.runner.calls)))
    house.step(2)
    assert [call.stamp["sweep"] for call in house.runner.history] == [urgent, old, new]
    house.drain()


def test_what_an_urgent_sweep_shares_becomes_urgent(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedRunner, "cpus", 1.0)
    house.submit(axes={"x": [1]}, fixed={"group": 1})
    house.submit(axes={"x": [2]}, fixed={"group": 2})
    house.submit(axes={"x": [2]}, fixed={"group": 2}, priority=5)
    house.step()
    assert [call.tasks[0].params["x"] for call in house.runner.history] == [2]
    house.drain()


def test_resources_are_the_specs_where_it_names_them(house: House) -> None:
    house.submit(axes={"x": [1]}, fixed={"base": "ok"}, resources={"measure": {"gpu": 0.5}, "noop_base": {"cpu": 3}})
    house.drain()
    base, measure = house.runner.history
    assert (base.resources.cpu, base.resources.gpu) == (3.0, 0.0)
    assert (measure.resources.cpu, measure.resources.gpu) == (1.0, 0.5)


def test_a_refused_spec_writes_nothing(house: House) -> None:
    bad: list[dict[str, Any]] = [
        {"axes": {"x": []}},
        {"axes": {"q": [1]}},
        {"experiment": "nope"},
        {"axes": {"x": [1]}, "fixed": {"y": float("nan")}},
        {"axes": {"x": {"range": [10**9]}}},
        {"axes": {"x": [1]}, "resources": {"noop": {"cpu": 1}}},
    ]
    for document in bad:
        with pytest.raises(SpecError):
            house.submit(**document)
    with house.ledger.read() as connection:
        for table in (tables.sweeps, tables.calls, tables.tasks, tables.cells, tables.events):
            assert connection.scalar(sa.select(sa.func.count()).select_from(table)) == 0


# -- idempotency ---------------------------------------------------------------------------------------------------


def test_an_idempotency_key_submits_once(house: House) -> None:
    document = {"name": "n", "experiment": "noop", "axes": {"x": [1]}}
    sweep, new = house.control.submit(document, ("key", "body"))
    assert new
    assert house.control.submit(document, ("key", "body")) == (sweep, False)
    with pytest.raises(ConflictError, match="was used with another body"):
        house.control.submit(document, ("key", "another body"))
    other, new = house.control.submit(document, ("another key", "body"))
    assert new
    assert other != sweep
    house.drain()


def test_the_key_of_a_refused_spec_may_be_used_again(house: House) -> None:
    with pytest.raises(SpecError):
        house.control.submit({"name": "n", "experiment": "nope"}, ("key", "bad"))
    _, new = house.control.submit({"name": "n", "experiment": "noop", "axes": {"x": [1]}}, ("key", "good"))
    assert new
    house.drain()


# -- failures ------------------------------------------------------------------------------------------------------


def test_a_failed_call_fails_its_cells_and_leaves_the_rest(house: House, calls: dict[int, Any]) -> None:
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
    assert house.state(sweep) is FAILED  # only when it is through
    (failure,) = house.failures.of(sweep)
    assert (failure.cause, failure.kind, failure.count, failure.skipped) == ("ValueError: told to", "noop", 2, 0)
    assert failure.traceback == "Traceback\nValueError: told to"


def test_what_stands_on_a_failed_stage_is_skipped(house: House, calls: dict[int, Any]) -> None:
    sweep = house.submit(
        fixed={"group": 1}, axes={"x": [1, 2]}, include=[{"x": 1, "base": "ok"}, {"x": 2, "base": "raise"}]
    )
    house.step()
    for call in list(calls):
        house.runner.work(call)
    house.step(2)
    (call,) = calls.values()
    assert len(call.tasks) == 3  # those that lost nothing go on
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 3, SKIPPED: 1}
    assert house.state(sweep) is FAILED
    (failure,) = house.failures.of(sweep)
    assert (failure.kind, failure.count, failure.skipped) == ("noop_base", 1, 1)
    assert "call.skipped" in house.event_types(sweep)


def test_a_call_whose_every_cell_lost_its_stage_is_not_run(house: House) -> None:
    sweep = house.submit(axes={"x": [1, 2]}, fixed={"base": "raise"})
    house.drain()
    assert house.counts(sweep) == {SKIPPED: 2}
    assert [call.kind for call in house.runner.history] == ["noop_base"]
    assert set(house.call_states().values()) == {FAILED, SKIPPED}


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
        house.runner.begin(call.id)
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


def test_a_call_that_succeeds_in_the_end_says_at_which_attempt(house: House, calls: dict[int, Any]) -> None:
    sweep = house.submit(axes={"x": [1]}, retry={"max": 1, "backoff_s": 0})
    house.step()
    house.runner.fail(next(iter(calls)), transient=True)
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 1}
    assert [row["attempt"] for row in house.rows()] == [2]


@pytest.mark.parametrize("error", ["", "\n", "one\ntwo"])
def test_an_error_of_any_shape_is_told(house: House, calls: dict[int, Any], error: str) -> None:
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
    house.runner.poll(0)  # its end was never told
    house.runner.say(Failed(call.id, "WorkerCrashedError", "", True, None, (key,)))
    house.step()
    assert [task.state for task in house.tasks.page(sweep, None, "", 5)[0]] == [SUCCEEDED]
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 1}
    assert [call.kind for call in house.runner.history] == ["noop_base", "noop"]


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


def test_diverged_cells_are_results(house: House) -> None:
    sweep = house.submit(axes={"x": [1], "behaviour": ["ok", "nan"]})
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 2}
    assert sorted((row["behaviour"], row["twice"], row["diverged"]) for row in house.rows()) == [
        ("nan", None, True),
        ("ok", 2.0, False),
    ]
    finished = next(event for event in house.events(sweep) if event.type == "call.finished")
    assert "1 with numbers that are not finite" in finished.data["message"]
    assert sorted(cell.diverged for cell in house.cells.page(sweep, None, -1, 9)[0]) == [False, True]


def test_a_call_of_a_package_that_is_gone_fails_alone(
    house: House, calls: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = house.submit(axes={"x": [1]})
    known = registry()
    kinds = {name: kind for name, kind in known.kinds.items() if not name.startswith("noop")}
    experiments = {name: known.experiments[name] for name in known.experiments if name != "noop"}
    monkeypatch.setattr(scheduler, "registry", lambda: Registry(experiments, kinds, {}))
    house.step()
    assert house.counts(sweep) == {FAILED: 1}
    assert "knows no task kind 'noop'" in house.events(sweep)[-2].data["message"]
    assert registries.registry() is known


def test_a_package_that_comes_back_with_another_type_of_a_column_is_refused(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.submit(axes={"x": [1]})
    house.drain()
    with monkeypatch.context() as patch:
        patch.setattr(control, "schema", lambda experiment: pa.schema([("twice", pa.string())]))
        with pytest.raises(SpecError, match=r"'noop' cannot be used: the column 'twice' is string here and double"):
            house.submit(axes={"x": [2]})
    house.submit(axes={"x": [2]})
    house.drain()
    assert len(house.rows()) == 2


def test_rows_with_another_type_of_a_column_fail_alone(house: House, calls: dict[int, Any]) -> None:
    """As from a sweep that was open when its package was changed: the rows of others are committed all the same."""
    house.submit(axes={"x": [1]})
    house.drain()
    changed, sound = house.submit(axes={"x": [2]}), house.submit(axes={"x": [3]})
    house.step()
    first = min(calls)
    table = pa.table({"cell": [calls[first].tasks[0].key], "twice": ["four"]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    del calls[first]
    house.runner.say(Finished(first, 0.1, "host", "cpu", sink.getvalue().to_pybytes(), {}, []))
    house.drain()
    assert (house.state(changed), house.state(sound)) == (FAILED, SUCCEEDED)
    assert house.scheduler.problem() is None
    (failure,) = house.failures.of(changed)
    assert failure.cause == "the column 'twice' is string here and double in the stored rows: rename it"


def test_a_corrupt_artifact_is_made_again_while_its_cells_wait(house: House, calls: dict[int, Any]) -> None:
    first = house.submit(axes={"x": [1]}, fixed={"base": "ok"})
    house.drain()
    (stage,) = house.tasks.page(first, None, "", 5)[0]
    (house.store.path(stage.key) / TENSORS).write_bytes(b"bad disk")
    local = LocalRunner(house.store)
    local.start()
    house.scheduler._runner = local
    sweep = house.submit(axes={"x": [2]}, fixed={"base": "ok"})
    deadline = time.monotonic() + 60
    while not house.state(sweep).finished:
        assert time.monotonic() < deadline
        house.step()
        house.check()
    assert house.counts(sweep) == {SUCCEEDED: 1}
    (told,) = (event.data for event in house.events(sweep) if event.type == "artifact.lost")
    assert "SHA-256 differs" in told["message"]
    assert told["missing"] == [stage.key]
    (again,) = house.tasks.page(sweep, None, "", 5)[0]
    assert (again.key, again.state) == (stage.key, SUCCEEDED)
    assert house.store.has(stage.key)
    local.stop()


# -- sharing -------------------------------------------------------------------------------------------------------


def test_two_sweeps_share_what_both_need(house: House, calls: dict[int, Any]) -> None:
    one = house.submit(**groups(2, fixed={"base": "ok"}))
    two = house.submit(**groups(3, fixed={"base": "ok"}))
    house.step()
    assert len(calls) == 1
    house.runner.begin(next(iter(calls)))
    house.step()
    assert (house.state(one), house.state(two)) == (RUNNING, RUNNING)
    assert len(house.sweeps.get(two).active) == 1  # it is shown by both
    house.drain()
    assert house.counts(one) == {SUCCEEDED: 4}
    assert house.counts(two) == {SUCCEEDED: 6}
    assert Counter(call.kind for call in house.runner.history) == {"noop_base": 1, "noop": 3}
    computed = [task.key for call in house.runner.history for task in call.tasks]
    assert len(set(computed)) == len(computed)


def test_a_failure_is_told_to_every_sweep_that_needed_it(house: House, calls: dict[int, Any]) -> None:
    one, two = house.submit(**groups(1)), house.submit(**groups(1))
    house.step()
    house.runner.fail(next(iter(calls)))
    house.step()
    assert (house.state(one), house.state(two)) == (FAILED, FAILED)
    assert house.event_types(two)[-2:] == ["call.failed", TERMINAL_EVENT]


def test_what_failed_before_is_tried_anew_by_another_sweep(house: House, calls: dict[int, Any]) -> None:
    one = house.submit(**groups(1))
    house.step()
    house.runner.fail(next(iter(calls)))
    house.step()
    two = house.submit(**groups(1))
    house.drain()
    assert house.state(two) is SUCCEEDED
    assert house.state(one) is FAILED  # finished is final


def test_sweeps_submitted_from_many_threads_at_once_compute_each_task_once(tmp_path: Path) -> None:
    house = House(tmp_path, lambda store: LocalRunner(store, workers=2))
    done: list[str] = []
    original = ArtifactStore.save

    def save(self: ArtifactStore, key: str, *arguments: Any) -> int:
        done.append(key)
        return original(self, key, *arguments)

    start = threading.Barrier(4)
    sweeps: list[str] = []

    def submit() -> None:
        start.wait()
        sweeps.append(house.submit(**groups(5, fixed={"base": "ok"})))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArtifactStore, "save", save)
        patch.setattr(scheduler, "POLL_S", 0.02)
        house.scheduler.start()
        threads = [threading.Thread(target=submit) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        states = [house.wait(sweep) for sweep in sweeps]
        house.scheduler.stop(10)
    assert len(sweeps) == 4
    assert set(states) <= {SUCCEEDED, CACHED}
    assert len(done) == len(set(done)) == 1
    assert len(house.rows()) == 10
    with house.ledger.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(tables.calls)) == 6
    house.check()
    house.close()


# -- cancel and retry ----------------------------------------------------------------------------------------------


def test_cancel_ends_the_sweep_at_once_and_keeps_what_is_done(house: House, calls: dict[int, Any]) -> None:
    sweep = house.submit(**groups(3))
    house.step()
    done, running, queued = calls
    house.runner.work(done)
    house.step(2)
    house.runner.begin(running)
    house.step()
    house.control.cancel(sweep)
    assert house.state(sweep) is CANCELLED
    assert house.counts(sweep) == {SUCCEEDED: 2, CANCELLED: 4}
    house.step(2)
    assert sorted(house.runner.cancelled) == sorted([running, queued])
    assert not calls
    assert len(house.rows()) == 2
    assert house.event_types(sweep)[-1] == TERMINAL_EVENT
    house.control.cancel(sweep)  # again: it is as asked
    assert house.event_types(sweep).count(TERMINAL_EVENT) == 1


def test_cancel_keeps_what_another_sweep_needs(house: House, calls: dict[int, Any]) -> None:
    one = house.submit(**groups(2, fixed={"base": "ok"}))
    two = house.submit(**groups(1, fixed={"base": "ok"}))
    house.step()
    (base,) = calls
    house.runner.begin(base)
    house.step()
    house.control.cancel(one)
    house.step(2)
    assert house.runner.cancelled == []
    house.drain()
    assert house.counts(one) == {CANCELLED: 4}
    assert house.counts(two) == {SUCCEEDED: 2}
    assert len(house.rows()) == 2
    assert house.event_types(one)[-1] == TERMINAL_EVENT  # what goes on for the other is not told here


def test_rows_of_a_cancelled_call_do_not_reach_the_table(
    house: House, calls: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_commits, "COMMIT_EVERY_S", math.inf)
    sweep = house.submit(**groups(2))
    house.step()
    done, _ = calls
    house.runner.work(done)
    house.step()  # its rows wait for their commit, because another call is in flight
    assert house.rows() == []
    assert house.counts(sweep) == {RUNNING: 2, QUEUED: 2}
    house.control.cancel(sweep)
    monkeypatch.setattr(row_commits, "COMMIT_EVERY_S", 0.0)
    house.step(3)
    assert house.rows() == []
    assert house.counts(sweep) == {CANCELLED: 4}
    again = house.submit(**groups(2))
    house.drain()
    assert house.counts(again) == {SUCCEEDED: 4}


def test_rows_on_their_way_into_the_table_are_not_computed_again(
    house: House, calls: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = house.submit(**groups(1))
    house.step()
    house.runner.work(next(iter(calls)))
    append = house.results.append
    two: list[str] = []

    def meanwhile(batch: int, tables: Any) -> None:
        append(batch, tables)
        house.control.cancel(one)  # between the commit of the rows and its note in the ledger
        two.append(house.submit(**groups(1)))

    monkeypatch.setattr(house.results, "append", meanwhile)
    house.step(2)
    monkeypatch.undo()
    house.drain()
    assert house.state(one) is CANCELLED
    assert house.counts(two[0]) in ({SUCCEEDED: 2}, {CACHED: 2})
    assert len(house.rows()) == 2
    assert len(house.runner.history) == 1


def test_cancel_wants_a_sweep_that_is_open(house: House) -> None:
    with pytest.raises(NotFoundError, match="there is no sweep 'nope'"):
        house.control.cancel("nope")
    sweep = house.submit(axes={"x": [1]})
    house.drain()
    with pytest.raises(ConflictError, match="has ended \\(succeeded\\)"):
        house.control.cancel(sweep)


def test_a_message_of_a_cancelled_call_changes_nothing(house: House, calls: dict[int, Any]) -> None:
    sweep = house.submit(**groups(1))
    house.step()
    (call,) = calls.values()
    house.control.cancel(sweep)
    house.runner.begin(call.id)
    house.runner.work(call.id)
    house.runner.say(Advanced(call.id, 1, 1, ""), Finished(call.id, 1.0, "h", "cpu"), Failed(call.id, "e", "", True))
    house.step(3)
    assert house.counts(sweep) == {CANCELLED: 2}
    assert house.rows() == []


def test_a_call_that_is_cancelled_while_it_is_handed_out_is_cancelled_there(
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


def test_retry_begins_anew_what_failed_and_nothing_else(house: House, calls: dict[int, Any]) -> None:
    sweep = house.submit(**groups(3))
    house.step()
    good, bad, cancelled = calls
    house.runner.work(good)
    house.runner.fail(bad)
    house.step(2)
    with pytest.raises(ConflictError, match="cancel it or let it end before a retry"):
        house.control.retry(sweep)
    house.control.cancel(sweep)
    house.step(2)
    assert house.counts(sweep) == {SUCCEEDED: 2, FAILED: 2, CANCELLED: 2}
    before = house.sql_tables.cell_index(sweep).to_pylist()
    assert house.control.retry(sweep) == 2
    assert house.state(sweep) is PENDING
    assert house.counts(sweep) == {SUCCEEDED: 2, PENDING: 2, CANCELLED: 2}
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 4, CANCELLED: 2}
    assert house.state(sweep) is CANCELLED
    assert house.sql_tables.cell_index(sweep).to_pylist() == before
    assert len(house.rows()) == 4
    assert house.event_types(sweep).count(TERMINAL_EVENT) == 2
    with pytest.raises(ConflictError, match=r"no cell .* has failed"):
        house.control.retry(sweep)
    with pytest.raises(NotFoundError):
        house.control.retry("nope")
    assert cancelled


def test_a_retry_runs_failed_stages_again_and_leaves_the_others(house: House, calls: dict[int, Any]) -> None:
    sweep = house.submit(axes={"x": [1, 2]}, fixed={"base": "ok"}, include=[{"x": 3, "base": "raise", "group": 9}])
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 2, SKIPPED: 1}
    assert len(house.tasks.page(sweep, None, "", 9)[0]) == 2
    house.control.retry(sweep)
    house.step()
    assert [call.tasks[0].params for call in calls.values()] == [{"base": "raise"}]
    house.drain()
    stages = {stage.params["base"]: stage.state for stage in house.tasks.page(sweep, None, "", 9)[0]}
    assert stages == {"ok": SUCCEEDED, "raise": FAILED}
    assert house.counts(sweep) == {SUCCEEDED: 2, SKIPPED: 1}


def test_a_retry_finds_what_another_sweep_has_computed_meanwhile(house: House, calls: dict[int, Any]) -> None:
    one = house.submit(**groups(1))
    house.step()
    house.runner.fail(next(iter(calls)))
    house.step()
    house.submit(**groups(1))
    house.drain()
    house.control.retry(one)
    assert house.state(one) is CACHED
    assert house.counts(one) == {CACHED: 2}


# -- the runner is lost --------------------------------------------------------------------------------------------


def test_what_was_in_flight_runs_again_after_the_runner_was_lost(house: House, calls: dict[int, Any]) -> None:
    sweep = house.submit(**groups(3, retry={"max": 1, "backoff_s": 0}))
    house.step()
    done, running, _ = calls
    house.runner.work(done)
    house.runner.begin(running)
    house.step()
    house.runner.lose()
    house.step()
    assert "runner.lost" in house.event_types(sweep)
    assert house.counts(sweep)[SUCCEEDED] == 2
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 6}
    attempts = Counter((call.id, call.attempt) for call in house.runner.history)
    assert attempts[running, 2] == 1  # it ran: an attempt was spent
    assert sum(n for (call, attempt), n in attempts.items() if attempt == 1) == 4  # the queued one's was not


def test_a_call_that_brings_the_cluster_down_each_time_comes_to_an_end(house: House, calls: dict[int, Any]) -> None:
    sweep = house.submit(axes={"x": [1]}, retry={"max": 2, "backoff_s": 0})
    for number in range(LOSSES):
        assert house.state(sweep) is not FAILED
        house.step()
        assert calls[1].attempt == number + 1
        house.runner.begin(next(iter(calls)))
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


def test_a_lost_runner_is_told_to_open_sweeps_alone(house: House, calls: dict[int, Any]) -> None:
    document = groups(1, retry={"max": 1, "backoff_s": 0})
    one, two = house.submit(**document), house.submit(**document)
    house.step()
    house.runner.begin(next(iter(calls)))
    house.step()
    house.control.cancel(one)
    house.runner.lose()
    house.step()
    assert house.event_types(one)[-1] == TERMINAL_EVENT
    assert "runner.lost" in house.event_types(two)
    house.drain()


# -- exactly once, through crashes ---------------------------------------------------------------------------------


def crash(*arguments: Any, **options: Any) -> Any:
    raise Crash


def before_the_note(house: House, patch: pytest.MonkeyPatch) -> None:
    """Step 1 does not happen: the ledger's transaction is not committed."""
    patch.setattr(row_commits, "next_batch", crash)


def within_the_note(house: House, patch: pytest.MonkeyPatch) -> None:
    """Step 1 happens half: the transaction is open when the process dies."""
    original = row_commits.next_batch

    def next_batch(*arguments: Any) -> Any:
        original(*arguments)
        raise Crash

    patch.setattr(row_commits, "next_batch", next_batch)


def before_the_append(house: House, patch: pytest.MonkeyPatch) -> None:
    """Step 1 happened, step 2 does not."""
    patch.setattr(house.results, "append", crash)


def after_the_append(house: House, patch: pytest.MonkeyPatch) -> None:
    """Step 2 happened, step 3 does not."""
    original = house.results.append

    def append(*arguments: Any) -> None:
        original(*arguments)
        raise Crash

    patch.setattr(house.results, "append", append)


def within_the_end(house: House, patch: pytest.MonkeyPatch) -> None:
    """Step 3 happens half: one of two calls has succeeded when the process dies."""
    original = transitions.finish_call
    counted = itertools.count()

    def finish_call(*arguments: Any, **options: Any) -> list[str]:
        sweeps = original(*arguments, **options)
        if next(counted) == 1:
            raise Crash
        return sweeps

    patch.setattr(transitions, "finish_call", finish_call)


WHERE = [before_the_note, within_the_note, before_the_append, after_the_append, within_the_end]


@pytest.mark.parametrize("where", WHERE, ids=lambda where: where.__name__)
def test_a_crash_between_the_steps_of_a_commit_loses_and_repeats_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Callable[[House, pytest.MonkeyPatch], None]
) -> None:
    first = House(tmp_path)
    earlier = first.submit(**groups(1, fixed={"y": 1.0}))
    first.drain()
    sweep = first.submit(**groups(4, fixed={"behaviour": "nan"}))
    first.step()
    one, two, *_ = first.runner.calls
    first.runner.work(one)
    first.runner.work(two)
    with monkeypatch.context() as patch:
        where(first, patch)
        with pytest.raises(Crash):
            first.step(3)
    first.close()

    second = House(tmp_path)
    second.scheduler.recover()
    second.check()
    second.drain()
    assert second.state(sweep) is SUCCEEDED
    assert second.counts(sweep) == {SUCCEEDED: 8}
    assert second.state(earlier) is SUCCEEDED
    assert len(second.rows()) == 10
    rerun = {call.id for call in second.runner.history}
    durable = where in (after_the_append, within_the_end)
    assert rerun & {one, two} == (set() if durable else {one, two})  # what was in the table is not computed again
    assert all(cell.diverged for cell in second.cells.page(sweep, None, -1, 100)[0])
    second.check()
    second.close()


def test_what_was_in_flight_when_the_service_was_killed_runs_again(tmp_path: Path) -> None:
    first = House(tmp_path)
    sweep = first.submit(**groups(3, fixed={"base": "ok"}))
    first.step()
    (base,) = first.runner.calls
    first.runner.work(base)
    first.step(2)
    one, *_ = first.runner.calls
    first.runner.begin(one)
    first.step()
    assert first.counts(sweep) == {RUNNING: 2, QUEUED: 4}
    first.close()  # nothing else: it is killed

    second = House(tmp_path)
    second.scheduler.recover()
    assert second.counts(sweep) == {PENDING: 6}
    second.drain()
    assert second.counts(sweep) == {SUCCEEDED: 6}
    assert [call.kind for call in second.runner.history] == ["noop"] * 3  # the stage was done
    second.check()
    second.close()


def test_recovering_twice_is_recovering_once(tmp_path: Path) -> None:
    first = House(tmp_path)
    sweep = first.submit(**groups(2))
    first.step()
    first.close()
    for _ in range(2):
        again = House(tmp_path)
        again.scheduler.recover()
        again.scheduler.recover()
        assert again.counts(sweep) == {PENDING: 4}
        again.close()


@pytest.mark.parametrize("error", [OSError("disk full"), DeltaError("no log")], ids=repr)
def test_a_table_that_cannot_be_written_is_tried_again_with_the_same_rows(
    house: House, calls: dict[int, Any], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    sweep = house.submit(**groups(2))
    house.step()
    one, two = calls
    house.runner.work(one)
    batches: list[int] = []

    def full(batch: int, tables: Any) -> None:
        batches.append(batch)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(house.results, "append", full)
        house.step(4)
        assert len(batches) >= 2
        assert len(set(batches)) == 1
        assert "rows cannot be written to the results table" in (house.scheduler.problem() or "")
        assert [condition.type for condition in house.sweeps.get(sweep).conditions] == ["degraded"]
        assert house.counts(sweep) == {RUNNING: 2, QUEUED: 2}
        house.runner.work(two)
        house.step(2)
    house.drain()
    assert house.scheduler.problem() is None
    assert house.counts(sweep) == {SUCCEEDED: 4}


def test_an_append_that_failed_after_its_commit_adds_nothing_twice(
    house: House, calls: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = house.submit(**groups(1))
    house.step()
    house.runner.work(next(iter(calls)))
    original = house.results.append
    with monkeypatch.context() as patch:

        def late(batch: int, tables: Any) -> None:
            original(batch, tables)
            raise OSError("the answer was lost")

        patch.setattr(house.results, "append", late)
        house.step(3)
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 2}
    assert len(house.rows()) == 2


def test_rows_do_not_pile_up_while_the_table_cannot_be_written(
    house: House, calls: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_commits, "ROWS_KEPT", 4)
    monkeypatch.setattr(ScriptedRunner, "cpus", 1.0)
    monkeypatch.setattr(dispatch, "MOST_AHEAD", 1)
    house.submit(**groups(9))

    def full(batch: int, tables: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(house.results, "append", full)
        for _ in range(20):
            house.step()
            for call in list(calls):
                house.runner.work(call)
        assert len(house.runner.history) <= 5  # one batch that is being written, one that waits
    house.drain()


def test_rows_are_committed_in_batches(house: House, calls: dict[int, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_commits, "COMMIT_EVERY_S", math.inf)
    appended: list[int] = []
    original = house.results.append

    def append(batch: int, tables: Any) -> None:
        appended.append(sum(table.num_rows for table in tables))
        original(batch, tables)

    monkeypatch.setattr(house.results, "append", append)
    house.submit(**groups(6))
    house.step()
    *most, last = calls
    for call in most:
        house.runner.work(call)
    house.step(3)
    assert appended == []
    house.runner.work(last)
    house.step(2)
    assert appended == [12]  # nothing is in flight: there is nothing to wait for


# -- life ----------------------------------------------------------------------------------------------------------


def test_a_started_scheduler_runs_sweeps_by_itself_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "POLL_S", 0.02)
    house = House(tmp_path, lambda store: LocalRunner(store, workers=2))
    house.scheduler.start()
    sweep = house.submit(axes={"x": [1, 2], "behaviour": ["ok", "raise", "nan"], "group": [1, 2]}, fixed={"base": "ok"})
    good = house.submit(axes={"x": [7, 8]}, fixed={"base": "ok"})
    assert house.wait(sweep) is FAILED
    assert house.wait(good) is SUCCEEDED
    house.scheduler.stop(10)
    assert house.scheduler.problem() is None
    house.check()
    house.close()


def test_stop_gives_calls_in_flight_their_grace_and_commits_what_is_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "POLL_S", 0.02)
    house = House(tmp_path)
    sweep = house.submit(**groups(4))
    house.scheduler.start()
    deadline = time.monotonic() + 30
    while len(house.runner.calls) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    one, two, three, _ = list(house.runner.calls)
    house.runner.say(*(Started(call, "host", "cpu") for call in (one, two, three)))
    while house.counts(sweep).get(RUNNING) != 6:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    house.runner.work(one)
    threading.Timer(0.3, lambda: house.runner.work(two)).start()
    began = time.monotonic()
    house.scheduler.stop(1.0)
    assert 0.9 <= time.monotonic() - began < 20
    assert house.counts(sweep) == {SUCCEEDED: 4, RUNNING: 2, PENDING: 2}  # the rest runs after a restart
    house.check()
    house.close()


def test_stop_commits_also_what_waits_behind_a_commit_that_failed(
    house: House, calls: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = house.submit(**groups(2))
    house.step()
    one, two = calls
    with monkeypatch.context() as patch:
        patch.setattr(house.results, "append", lambda batch, tables: (_ for _ in ()).throw(OSError("disk full")))
        house.runner.work(one)
        house.step(2)
        house.runner.work(two)
        house.step()
    house.scheduler._stopping.set()
    house.scheduler._run()
    assert house.counts(sweep) == {SUCCEEDED: 4}


def test_a_call_that_failed_when_all_it_was_to_make_is_there_has_succeeded(house: House, calls: dict[int, Any]) -> None:
    sweep = house.submit(axes={"x": [1]}, fixed={"base": "ok"}, fail_fast=True)
    house.step()
    (base,) = calls.values()
    del calls[base.id]
    (stage,) = base.tasks
    house.store.save(stage.key, stage.payload(), {"one": np.ones(1, np.float32)}, {})
    house.runner.say(Failed(base.id, "OSError: at the very end", "", transient=False, stored=[stage.key]))
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 1}
    assert house.call_states()[base.id] is SUCCEEDED


def test_a_clock_that_is_set_back_does_not_keep_a_call_waiting(
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


@pytest.mark.parametrize("moment", ["submitting", "running", "committing"])
def test_a_ledger_that_cannot_be_written_for_a_while_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(scheduler, "POLL_S", 0.02)
    monkeypatch.setattr(scheduler, "LEDGER_PAUSE_S", 0.05)
    monkeypatch.setattr(row_commits, "COMMIT_EVERY_S", 3600.0 if moment == "running" else 0.0)
    house = House(tmp_path, lambda store: LocalRunner(store, workers=2))
    sweep = house.submit(**groups(6, fixed={"base": "ok"}))
    written, broken = itertools.count(), threading.Event()
    original = house.ledger.write

    @contextmanager
    def write() -> Iterator[sa.Connection]:
        number = next(written)
        with original() as connection:
            if number == {"submitting": 2, "running": 6, "committing": 9}[moment]:
                broken.set()
            if broken.is_set():
                raise sa.exc.OperationalError("INSERT", {}, Exception("database or disk is full"))
            yield connection

    monkeypatch.setattr(house.ledger, "write", write)
    house.scheduler.start()
    assert broken.wait(30)
    deadline = time.monotonic() + 30
    while (problem := house.scheduler.problem()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert problem == "the ledger cannot be used: database or disk is full; sweeps continue once it can"
    time.sleep(0.3)
    monkeypatch.setattr(house.ledger, "write", original)
    monkeypatch.setattr(row_commits, "COMMIT_EVERY_S", 0.0)
    while not house.state(sweep).finished:
        assert time.monotonic() < deadline, house.scheduler.problem()
        time.sleep(0.02)
    assert house.counts(sweep) == {SUCCEEDED: 12}
    assert house.scheduler.problem() is None
    house.scheduler.stop(5)
    house.check()
    house.close()


def test_a_scheduler_that_dies_says_so(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(house.scheduler, "step", bug)
    house.scheduler._run()
    assert house.scheduler.problem() == "the scheduler has ended: RuntimeError: a bug; restart the service"


def test_a_runner_in_trouble_is_told(house: House) -> None:
    sweep = house.submit(axes={"x": [1]})
    house.runner.degraded = "Ray is starting"
    assert house.scheduler.problem() == "Ray is starting"
    assert house.sweeps.get(sweep).conditions[0].message == "Ray is starting"
    house.runner.degraded = None
    house.drain()
    assert house.sweeps.get(sweep).conditions == []


def test_a_loss_with_nothing_in_flight_is_nothing(house: House) -> None:
    house.runner.say(Lost("the cluster is gone"))
    house.step(2)
    assert house.scheduler.problem() is None
