"""The scheduler: every task runs once, nothing is lost in a restart, and trouble is reported."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sweeping import House, both_databases, groups, one_cell_groups, wait_until

from creditgrid.core.experiments import registry as registries
from creditgrid.core.experiments.registry import Registry, registry
from creditgrid.core.states import State
from creditgrid.core.wire import TERMINAL_EVENT
from creditgrid.service.ledger import tables
from creditgrid.service.scheduling import row_commits, scheduler
from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.local_runner import LocalRunner
from creditgrid.workers.runner import Advanced, Started

SUCCEEDED, CACHED, FAILED, SKIPPED = State.SUCCEEDED, State.CACHED, State.FAILED, State.SKIPPED
PENDING, QUEUED, RUNNING = State.PENDING, State.QUEUED, State.RUNNING


# -- from submission to the end of a sweep ---------------------------------------------------------------------------


def test_a_sweep_goes_from_pending_to_running_to_succeeded(house: House, calls: dict[int, Any]) -> None:
    sweep = house.submit(**groups(1))
    assert house.state(sweep) is PENDING
    assert house.counts(sweep) == {PENDING: 2}
    house.step()
    (call,) = calls
    assert house.counts(sweep) == {QUEUED: 2}
    house.runner.start_call(call)
    house.step()
    assert house.state(sweep) is RUNNING
    assert house.counts(sweep) == {RUNNING: 2}
    house.runner.report(Advanced(call, 1, 4, "half of a half"))
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


def test_stages_run_before_the_cells_that_need_them(house: House, calls: dict[int, Any]) -> None:
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


def test_resources_come_from_the_spec_where_it_names_them(house: House) -> None:
    house.submit(axes={"x": [1]}, fixed={"base": "ok"}, resources={"measure": {"gpu": 0.5}, "noop_base": {"cpu": 3}})
    house.drain()
    base, measure = house.runner.history
    assert (base.resources.cpu, base.resources.gpu) == (3.0, 0.0)
    assert (measure.resources.cpu, measure.resources.gpu) == (1.0, 0.5)


def test_cells_that_need_a_failed_stage_are_skipped(house: House, calls: dict[int, Any]) -> None:
    sweep = house.submit(
        fixed={"group": 1}, axes={"x": [1, 2]}, include=[{"x": 1, "base": "ok"}, {"x": 2, "base": "raise"}]
    )
    house.step()
    for call in list(calls):
        house.runner.work(call)
    house.step(2)
    (call,) = calls.values()
    assert len(call.tasks) == 3  # without the cell that lost its stage
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 3, SKIPPED: 1}
    assert house.state(sweep) is FAILED
    (failure,) = house.failures.of(sweep)
    assert (failure.kind, failure.count, failure.skipped) == ("noop_base", 1, 1)
    assert "call.skipped" in house.event_types(sweep)


def test_a_call_without_a_cell_that_can_run_is_skipped(house: House) -> None:
    sweep = house.submit(axes={"x": [1, 2]}, fixed={"base": "raise"})
    house.drain()
    assert house.counts(sweep) == {SKIPPED: 2}
    assert [call.kind for call in house.runner.history] == ["noop_base"]
    assert set(house.call_states().values()) == {FAILED, SKIPPED}


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


# -- sharing and caching ---------------------------------------------------------------------------------------------


def test_a_second_sweep_runs_nothing_and_is_cached(house: House) -> None:
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


def test_a_cached_row_needs_no_stage_but_a_new_cell_recomputes_a_lost_one(house: House) -> None:
    first = house.submit(axes={"x": [1]}, fixed={"base": "ok"})
    house.drain()
    (stage,) = house.tasks.page(first, None, "", 10)[0]
    house.store.path(stage.key).rename(house.root / "gone")
    assert house.state(house.submit(axes={"x": [1]}, fixed={"base": "ok"})) is CACHED
    second = house.submit(axes={"x": [1, 2]}, fixed={"base": "ok"})
    house.drain()
    assert house.counts(second) == {CACHED: 1, SUCCEEDED: 1}
    assert [call.kind for call in house.runner.history] == ["noop_base", "noop", "noop_base", "noop"]


def test_two_sweeps_share_what_both_need(house: House, calls: dict[int, Any]) -> None:
    one = house.submit(**groups(2, fixed={"base": "ok"}))
    two = house.submit(**groups(3, fixed={"base": "ok"}))
    house.step()
    assert len(calls) == 1
    house.runner.start_call(next(iter(calls)))
    house.step()
    assert (house.state(one), house.state(two)) == (RUNNING, RUNNING)
    assert len(house.sweeps.get(two).active) == 1  # it is shown by both
    house.drain()
    assert house.counts(one) == {SUCCEEDED: 4}
    assert house.counts(two) == {SUCCEEDED: 6}
    assert Counter(call.kind for call in house.runner.history) == {"noop_base": 1, "noop": 3}
    computed = [task.key for call in house.runner.history for task in call.tasks]
    assert len(set(computed)) == len(computed)


def test_another_sweep_tries_again_what_failed_before(house: House, calls: dict[int, Any]) -> None:
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


@both_databases
def test_skipped_cells_are_counted_with_the_failure_that_caused_them(house: House) -> None:
    sweep = house.submit(
        axes={"x": [1, 2, 3]}, fixed={"base": "raise"}, include=[{"x": 4, "base": "ok", "behaviour": "raise"}]
    )
    house.drain()
    stage, cell = sorted(house.failures.of(sweep), key=lambda failure: -failure.skipped)
    assert (stage.kind, stage.count, stage.skipped) == ("noop_base", 1, 3)
    assert (cell.kind, cell.count, cell.skipped) == ("noop", 1, 0)
    assert house.counts(sweep) == {SKIPPED: 3, FAILED: 1}


@both_databases
def test_a_stage_that_failed_for_another_sweep_runs_again(house: House) -> None:
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


@both_databases
def test_a_call_whose_owner_has_ended_is_handed_over(house: House) -> None:
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


# -- start, stop and recovery ----------------------------------------------------------------------------------------


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


def test_stop_gives_running_calls_their_grace_and_commits_finished_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "POLL_S", 0.02)
    house = House(tmp_path)
    sweep = house.submit(**groups(4))
    house.scheduler.start()
    wait_until(lambda: len(house.runner.calls) == 4)
    one, two, three, _ = list(house.runner.calls)
    house.runner.report(*(Started(call, "host", "cpu") for call in (one, two, three)))
    wait_until(lambda: house.counts(sweep).get(RUNNING) == 6)
    house.runner.work(one)
    threading.Timer(0.3, lambda: house.runner.work(two)).start()
    start = time.monotonic()
    house.scheduler.stop(1.0)
    assert 0.9 <= time.monotonic() - start < 20
    assert house.counts(sweep) == {SUCCEEDED: 4, RUNNING: 2, PENDING: 2}  # the rest runs after a restart
    house.check()
    house.close()


def test_stop_commits_also_the_rows_behind_a_commit_that_failed(
    house: House, calls: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_commits, "COMMIT_PAUSE_S", math.inf)  # no further try before the stop
    sweep = house.submit(**groups(2))
    house.scheduler.start()
    wait_until(lambda: len(calls) == 2)
    one, two = calls
    with monkeypatch.context() as patch:
        patch.setattr(house.results, "append", lambda batch, tables: (_ for _ in ()).throw(OSError("disk full")))
        house.runner.work(one)
        wait_until(lambda: house.scheduler.problem() is not None)
        house.runner.work(two)
        wait_until(lambda: not len(house.scheduler.in_flight))
    assert house.rows() == []
    house.scheduler.stop(0)
    assert house.counts(sweep) == {SUCCEEDED: 4}


def test_calls_in_flight_when_the_service_was_killed_run_again(tmp_path: Path) -> None:
    first = House(tmp_path)
    sweep = first.submit(**groups(3, fixed={"base": "ok"}))
    first.step()
    (base,) = first.runner.calls
    first.runner.work(base)
    first.step(2)
    one, *_ = first.runner.calls
    first.runner.start_call(one)
    first.step()
    assert first.counts(sweep) == {RUNNING: 2, QUEUED: 4}
    first.close()  # killed: nothing more is written

    second = House(tmp_path)
    second.scheduler.recover()
    assert second.counts(sweep) == {PENDING: 6}
    second.drain()
    assert second.counts(sweep) == {SUCCEEDED: 6}
    assert [call.kind for call in second.runner.history] == ["noop"] * 3  # the stage was done
    second.check()
    second.close()


def test_a_second_recovery_changes_nothing(tmp_path: Path) -> None:
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
    def write(**options: Any) -> Iterator[sa.Connection]:
        number = next(written)
        with original(**options) as connection:
            if number == {"submitting": 2, "running": 6, "committing": 9}[moment]:
                broken.set()
            if broken.is_set():
                raise sa.exc.OperationalError("INSERT", {}, Exception("database or disk is full"))
            yield connection

    monkeypatch.setattr(house.ledger, "write", write)
    house.scheduler.start()
    assert broken.wait(30)
    wait_until(lambda: house.scheduler.problem() is not None)
    assert (
        house.scheduler.problem() == "the ledger cannot be used: database or disk is full; sweeps continue once it can"
    )
    time.sleep(0.3)
    monkeypatch.setattr(house.ledger, "write", original)
    monkeypatch.setattr(row_commits, "COMMIT_EVERY_S", 0.0)
    house.wait(sweep, despite_trouble=True)
    assert house.counts(sweep) == {SUCCEEDED: 12}
    assert house.scheduler.problem() is None
    house.scheduler.stop(5)
    house.check()
    house.close()


def test_a_scheduler_that_dies_reports_it(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    stepped = threading.Event()

    def bug() -> None:
        stepped.set()
        raise RuntimeError("a bug")

    monkeypatch.setattr(house.scheduler, "step", bug)
    house.scheduler.start()
    assert stepped.wait(30)
    house.scheduler.stop(0)
    assert house.scheduler.problem() == "the scheduler has ended: RuntimeError: a bug; restart the service"


def test_trouble_of_the_runner_is_shown(house: House) -> None:
    sweep = house.submit(axes={"x": [1]})
    house.runner.degraded = "Ray is starting"
    assert house.scheduler.problem() == "Ray is starting"
    assert house.sweeps.get(sweep).conditions[0].message == "Ray is starting"
    house.runner.degraded = None
    house.drain()
    assert house.sweeps.get(sweep).conditions == []


def test_calls_of_ended_owners_are_handed_over_at_the_start(tmp_path: Path, no_pauses: None) -> None:
    house = House(tmp_path)
    one, two = house.submit(**one_cell_groups(2)), house.submit(**one_cell_groups(2))
    with house.ledger.write() as connection:
        connection.exec_driver_sql(f"UPDATE sweeps SET state = 'cancelled' WHERE id = '{one}'")
        connection.exec_driver_sql(f"UPDATE cells SET state = 'cancelled' WHERE sweep = '{one}'")
    again = House(tmp_path)
    again.scheduler.recover()
    again.drain()
    assert again.counts(two) == {SUCCEEDED: 2}
    again.close()
    house.close()
