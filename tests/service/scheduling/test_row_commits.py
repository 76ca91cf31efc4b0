"""Commits of rows: each row is in the table exactly once, wherever the process dies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake.exceptions import DeltaError
from sweeping import Crash, House, ScriptedRunner, groups

from creditgrid.core.errors import SpecError
from creditgrid.core.states import State
from creditgrid.service import control
from creditgrid.service.ledger import transitions
from creditgrid.service.scheduling import dispatch, row_commits
from creditgrid.workers.runner import Finished

SUCCEEDED, CACHED, FAILED, CANCELLED = State.SUCCEEDED, State.CACHED, State.FAILED, State.CANCELLED
QUEUED, RUNNING = State.QUEUED, State.RUNNING


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
    assert appended == [12]  # at once, since no call in flight can add rows


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
    """As after a change of a package while its sweep was open: the rows of other sweeps are committed."""
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
    house.runner.report(Finished(first, 0.1, "host", "cpu", sink.getvalue().to_pybytes(), {}, []))
    house.drain()
    assert (house.state(changed), house.state(sound)) == (FAILED, SUCCEEDED)
    assert house.scheduler.problem() is None
    (failure,) = house.failures.of(changed)
    assert failure.cause == "the column 'twice' is string here and double in the stored rows: rename it"


def test_rows_are_held_against_those_whose_commit_failed(
    house: House, calls: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files of code may give one column two types, and the table may not have it yet."""
    house.submit(**groups(1))
    house.step()

    def full(batch: int, tables: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(house.results, "append", full)
        house.runner.work(next(iter(calls)))
        house.step(3)
        why = house.scheduler.commits.misfit(pa.schema([("twice", pa.string())]))
        assert why == "the column 'twice' is string here and double in rows that came just before"
    house.drain()


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


def test_rows_that_are_being_committed_are_not_computed_again(
    house: House, calls: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = house.submit(**groups(1))
    house.step()
    house.runner.work(next(iter(calls)))
    append = house.results.append
    two: list[str] = []

    def meanwhile(batch: int, tables: Any) -> None:
        append(batch, tables)
        house.control.cancel(one)  # after the append, before the ledger notes it
        two.append(house.submit(**groups(1)))

    monkeypatch.setattr(house.results, "append", meanwhile)
    house.step(2)
    monkeypatch.undo()
    house.drain()
    assert house.state(one) is CANCELLED
    assert house.counts(two[0]) in ({SUCCEEDED: 2}, {CACHED: 2})
    assert len(house.rows()) == 2
    assert len(house.runner.history) == 1


def crash(*arguments: Any, **options: Any) -> Any:
    raise Crash


def before_the_note(house: House, patch: pytest.MonkeyPatch) -> None:
    """The process dies before step 1."""
    patch.setattr(row_commits, "next_batch", crash)


def within_the_note(house: House, patch: pytest.MonkeyPatch) -> None:
    """The process dies within the transaction of step 1."""
    original = row_commits.next_batch

    def next_batch(*arguments: Any) -> Any:
        original(*arguments)
        raise Crash

    patch.setattr(row_commits, "next_batch", next_batch)


def before_the_append(house: House, patch: pytest.MonkeyPatch) -> None:
    """The process dies between step 1 and step 2."""
    patch.setattr(house.results, "append", crash)


def after_the_append(house: House, patch: pytest.MonkeyPatch) -> None:
    """The process dies between step 2 and step 3."""
    original = house.results.append

    def append(*arguments: Any) -> None:
        original(*arguments)
        raise Crash

    patch.setattr(house.results, "append", append)


def within_the_end(house: House, patch: pytest.MonkeyPatch) -> None:
    """The process dies within step 3: one of two calls has succeeded."""
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
    assert rerun & {one, two} == (set() if durable else {one, two})  # calls with rows in the table do not run again
    assert all(cell.diverged for cell in second.cells.page(sweep, None, -1, 100)[0])
    second.check()
    second.close()


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


def test_few_rows_wait_while_the_table_cannot_be_written(
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
        assert len(house.runner.history) <= 5  # a batch that is being written and a batch that waits
    house.drain()
