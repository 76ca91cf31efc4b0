"""Sweeps as they go over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sweeping import House, ScriptedRunner, pages

from creditgrid.core.errors import NotFoundError
from creditgrid.core.states import State
from creditgrid.core.wire import TERMINAL_EVENT
from creditgrid.service.ledger.counts import backlogs
from creditgrid.service.prediction.forecast import COMMIT_S, HANDOVER_S
from creditgrid.workers.runner import Advanced


def test_everything_of_an_unknown_sweep_is_not_found(house: House) -> None:
    asks: list[Callable[[], Any]] = [
        lambda: house.sweeps.get("nope"),
        lambda: house.cells.page("nope", None, -1, 10),
        lambda: house.tasks.page("nope", None, "", 10),
        lambda: house.failures.of("nope"),
        lambda: house.sweeps.events("nope", 0, 10),
        lambda: house.summaries.of("nope"),
        lambda: house.sql_tables.cell_index("nope"),
    ]
    for ask in asks:
        with pytest.raises(NotFoundError, match="there is no sweep 'nope'"):
            ask()


def test_a_sweep_tells_what_was_asked_and_where_it_stands(house: House) -> None:
    before = datetime.now(UTC)
    sweep = house.submit(name="mine", axes={"x": [1, 2]}, fixed={"base": "ok"}, priority=3)
    view = house.sweeps.get(sweep)
    assert (view.id, view.name, view.experiment, view.priority) == (sweep, "mine", "noop", 3)
    assert (view.state, view.cells, view.counts) == (State.PENDING, 2, {State.PENDING: 2})
    assert view.tasks == {"noop_base": {State.PENDING: 1}}
    assert (view.active, view.conditions, view.finished_at, view.remaining_s) == ([], [], None, None)
    assert before.timestamp() - 1 <= view.created_at.timestamp() <= datetime.now(UTC).timestamp() + 1
    assert view.spec == {
        "name": "mine", "experiment": "noop", "axes": {"x": [1, 2]}, "fixed": {"base": "ok"}, "priority": 3,
    }  # fmt: skip
    house.drain()
    view = house.sweeps.get(sweep)
    assert view.tasks == {"noop_base": {State.SUCCEEDED: 1}}
    assert view.remaining_s == 0.0
    assert view.finished_at is not None


def test_sweeps_are_listed_newest_first_in_pages(house: House) -> None:
    made = [house.submit(axes={"x": [x]}) for x in range(5)]
    house.control.cancel(made[1])
    found = pages(lambda after: house.sweeps.page(None, after or None, 2), 0)
    assert [[view.id for view in page] for page in found] == [[made[4], made[3]], [made[2], made[1]], [made[0]]]
    assert all(view.spec is None for page in found for view in page)
    assert [view.id for view in house.sweeps.page(State.CANCELLED, None, 9)[0]] == [made[1]]
    house.drain()


def test_open_totals_are_the_sums_of_the_open_sweeps(house: House) -> None:
    house.submit(axes={"x": [1, 2]})
    house.drain()
    waiting, cancelled = (house.submit(axes={"x": [2, x]}) for x in (3, 4))
    house.control.cancel(cancelled)
    view = house.sweeps.get(waiting)
    assert view.counts == {State.CACHED: 1, State.PENDING: 1}
    assert house.sweeps.open_totals() == ({State.PENDING: 1}, view.counts)


def test_a_page_takes_as_many_queries_for_many_sweeps_as_for_one(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    for x in range(20):
        house.submit(axes={"group": [0, 1], "x": [x]}, include=[{"x": x, "base": "ok"}])
    house.step()
    counted: list[int] = []
    execute = sa.Connection.execute

    def counting(self: sa.Connection, *args: Any, **options: Any) -> Any:
        counted[-1] += 1
        return execute(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(sa.Connection, "execute", counting)
        for limit in (1, 20):
            counted.append(0)
            assert len(house.sweeps.page(None, None, limit)[0]) == limit
    assert counted[0] == counted[1] > 0
    for view in house.sweeps.page(None, None, 20)[0]:
        assert view == house.sweeps.get(view.id).model_copy(update={"spec": None})


def test_events_go_on_after_the_last_one_seen(house: House) -> None:
    sweep, other = house.submit(axes={"x": [1]}), house.submit(axes={"x": [2]})
    house.drain()
    events = house.sweeps.events(sweep, 0, 100)
    assert [event.type for event in events][-1] == TERMINAL_EVENT
    assert {event.sweep for event in events} == {sweep}
    assert house.sweeps.events(sweep, events[0].id, 1) == [events[1]]
    assert house.sweeps.events(sweep, events[-1].id, 10) == []
    assert events[-1].data["counts"] == {"succeeded": 1}
    assert {event.id for event in events}.isdisjoint(event.id for event in house.sweeps.events(other, 0, 100))
    again = House(house.root)  # they are there after a restart
    assert again.sweeps.events(sweep, 0, 100) == events
    again.close()


def test_the_time_left_comes_from_progress_and_from_what_was_measured(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(ScriptedRunner, "cpus", 2.0)
    monkeypatch.setattr("creditgrid.service.scheduling.scheduler.time.monotonic", lambda: now)
    first = house.submit(axes={"group": [0, 1], "x": [1]})
    second = house.submit(axes={"group": [0, 1], "x": [1]})  # shares every call
    house.step()
    one, two = house.runner.calls
    for call in (one, two):
        house.runner.start_call(call)
        house.runner.report(Advanced(call, 0, 5, ""))
    house.step()
    assert house.sweeps.get(first).remaining_s is None  # no call of the kind was seen, and none has advanced
    now += 10.0
    house.runner.report(Advanced(one, 1, 5, ""), Advanced(two, 4, 5, ""))
    house.step()
    # One has four fifths left, the other one fifth; they run at the same time.
    assert house.sweeps.get(first).remaining_s == pytest.approx(10 * 4 + HANDOVER_S + COMMIT_S)
    assert house.sweeps.get(second).remaining_s == house.sweeps.get(first).remaining_s
    assert [activity.call for activity in house.sweeps.get(second).active] == [one, two]
    house.drain()
    assert house.sweeps.get(first).remaining_s == 0.0
    third = house.submit(axes={"group": [0, 1, 2], "x": list(range(10, 20))})
    with house.ledger.read() as connection:
        took = connection.exec_driver_sql("SELECT seconds / size FROM calls WHERE seconds > 0").scalars().all()
    left = house.sweeps.get(third).remaining_s
    assert left is not None
    assert any(left == pytest.approx(2 * 10 * each + HANDOVER_S + COMMIT_S) for each in took)  # two rounds
    house.step()
    resumed = next(iter(house.runner.calls))
    house.runner.start_call(resumed)
    house.runner.report(Advanced(resumed, 60, 100, "resumed"))
    house.step()
    now += 5.0
    house.runner.report(Advanced(resumed, 70, 100, ""))
    house.step()
    # It did 10 steps in 5 s, and not 70; the third call waits for the other slot.
    assert house.sweeps.get(third).remaining_s == pytest.approx(15 + HANDOVER_S + COMMIT_S)
    house.drain()


@pytest.mark.parametrize("calls", [3, 400])
def test_the_time_left_is_read_from_a_few_rows(house: House, calls: int) -> None:
    sweep = house.submit(axes={"group": list(range(calls)), "x": [1]}, fixed={"base": "ok"})
    with house.ledger.read() as connection:
        (rows,) = backlogs(connection, [sweep]).values()
    assert [(row.kind, row.planned, row.open) for row in rows] == [("noop", calls, calls), ("noop_base", 1, 1)]
    house.control.cancel(sweep)
    with house.ledger.read() as connection:
        assert backlogs(connection, [sweep]) == {}
