"""What the ledger and the table say of sweeps, as it goes over HTTP."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from sweeping import House, ScriptedRunner, quick

from creditgrid.core.errors import NotFoundError
from creditgrid.core.states import State
from creditgrid.core.wire import TERMINAL_EVENT
from creditgrid.workers.runner import Advanced


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    with quick(monkeypatch):
        made = House(tmp_path)
        yield made
        made.check()
        made.close()
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(mode)


def pages(ask: Callable[[Any], tuple[list[Any], Any]], first: Any) -> list[list[Any]]:
    found = []
    after = first
    while after is not None:
        items, after = ask(after)
        found.append(items)
    return found


def test_everything_of_an_unknown_sweep_is_not_found(house: House) -> None:
    asks: list[Callable[[], Any]] = [
        lambda: house.views.sweep("nope"),
        lambda: house.views.cells("nope", None, -1, 10),
        lambda: house.views.tasks("nope", None, "", 10),
        lambda: house.views.failures("nope"),
        lambda: house.views.events("nope", 0, 10),
        lambda: house.views.summary("nope"),
        lambda: house.views.cell_index("nope"),
    ]
    for ask in asks:
        with pytest.raises(NotFoundError, match="there is no sweep 'nope'"):
            ask()


def test_a_sweep_tells_what_was_asked_and_where_it_stands(house: House) -> None:
    before = datetime.now(UTC)
    sweep = house.submit(name="mine", axes={"x": [1, 2]}, fixed={"base": "ok"}, priority=3)
    view = house.views.sweep(sweep)
    assert (view.id, view.name, view.experiment, view.priority) == (sweep, "mine", "noop", 3)
    assert (view.state, view.cells, view.counts) == (State.PENDING, 2, {State.PENDING: 2})
    assert view.tasks == {"noop_base": {State.PENDING: 1}}
    assert (view.active, view.conditions, view.finished_at, view.remaining_s) == ([], [], None, None)
    assert before.timestamp() - 1 <= view.created_at.timestamp() <= datetime.now(UTC).timestamp() + 1
    assert view.spec == {
        "name": "mine", "experiment": "noop", "axes": {"x": [1, 2]}, "fixed": {"base": "ok"}, "priority": 3,
    }  # fmt: skip
    house.drain()
    view = house.views.sweep(sweep)
    assert view.tasks == {"noop_base": {State.SUCCEEDED: 1}}
    assert view.remaining_s == 0.0
    assert view.finished_at is not None


def test_sweeps_are_listed_newest_first_in_pages(house: House) -> None:
    made = [house.submit(axes={"x": [x]}) for x in range(5)]
    house.control.cancel(made[1])
    found = pages(lambda after: house.views.sweeps(None, after or None, 2), "")
    assert [[view.id for view in page] for page in found] == [[made[4], made[3]], [made[2], made[1]], [made[0]]]
    assert all(view.spec is None for page in found for view in page)
    assert [view.id for view in house.views.sweeps(State.CANCELLED, None, 9)[0]] == [made[1]]
    house.drain()


def test_cells_are_listed_in_the_order_of_the_grid_in_pages(house: House) -> None:
    sweep = house.submit(axes={"x": [5, 3, 4], "y": [0.5, 1.5]}, fixed={"base": "ok"})
    found = pages(lambda after: house.views.cells(sweep, None, after, 4), -1)
    assert [len(page) for page in found] == [4, 2]
    cells = [cell for page in found for cell in page]
    assert [cell.index for cell in cells] == list(range(6))
    assert [(cell.params["x"], cell.params["y"]) for cell in cells] == [(x, y) for x in (5, 3, 4) for y in (0.5, 1.5)]
    assert len({cell.key for cell in cells}) == 6
    assert {tuple(cell.parents) for cell in cells} == {("base",)}
    assert house.views.cell_index(sweep).to_pylist() == [{"idx": cell.index, "cell": cell.key} for cell in cells]
    house.drain()


def test_cells_show_the_state_of_their_call_while_it_is_open(house: House) -> None:
    sweep = house.submit(axes={"group": [0, 1, 2], "x": [1]})

    def states() -> list[State]:
        return [cell.state for cell in house.views.cells(sweep, None, -1, 9)[0]]

    assert states() == [State.PENDING] * 3
    house.step()
    one, two, _ = house.runner.calls
    assert states() == [State.QUEUED] * 3
    house.runner.begin(one)
    house.runner.begin(two)
    house.step()
    house.runner.fail(two, error="ValueError: so\nand so")
    house.step()
    assert states() == [State.RUNNING, State.FAILED, State.QUEUED]
    for state, index in ((State.RUNNING, 0), (State.FAILED, 1), (State.QUEUED, 2)):
        assert [cell.index for cell in house.views.cells(sweep, state, -1, 9)[0]] == [index]
    (failed,) = house.views.cells(sweep, State.FAILED, -1, 9)[0]
    assert failed.error == "ValueError: so"
    house.drain()


def test_stages_are_listed_with_what_they_cost(house: House) -> None:
    sweep = house.submit(axes={"x": [1]}, include=[{"x": 1, "base": "ok"}, {"x": 2, "base": "raise"}])
    house.drain()
    found = pages(lambda after: house.views.tasks(sweep, None, after, 1), "")
    stages = [stage for page in found for stage in page]
    assert [stage.key for stage in stages] == sorted(stage.key for stage in stages)
    good, bad = sorted(stages, key=lambda stage: str(stage.params["base"]))
    assert (good.kind, good.state, good.attempt, good.error) == ("noop_base", State.SUCCEEDED, 1, None)
    assert good.bytes == len(house.store.read(good.key))
    assert good.seconds is not None
    assert (bad.state, bad.bytes) == (State.FAILED, None)
    assert bad.error == "ValueError: the base was told to raise"
    assert [stage.key for stage in house.views.tasks(sweep, State.FAILED, "", 9)[0]] == [bad.key]


def test_failures_are_grouped_by_cause_the_most_frequent_first(house: House) -> None:
    sweep = house.submit(axes={"group": [0, 1, 2], "x": [1, 2]}, include=[{"x": 9, "base": "raise", "group": 9}])
    house.step()
    errors = {0: "ValueError: rare", 1: "ValueError: frequent", 2: "ValueError: frequent"}
    for number, call in list(house.runner.calls.items()):
        if call.kind == "noop":
            group = call.tasks[0].params["group"]
            house.runner.fail(number, error=errors[group] + f"\nmore of {group}")
    house.drain()
    found = house.views.failures(sweep)
    assert [(view.cause, view.kind, view.count, view.skipped) for view in found] == [
        ("ValueError: frequent", "noop", 4, 0),
        ("ValueError: rare", "noop", 2, 0),
        ("ValueError: the base was told to raise", "noop_base", 1, 1),
    ]
    keys = {cell.key for cell in house.views.cells(sweep, None, -1, 20)[0]}
    assert found[0].key in keys
    assert "Traceback" in found[2].traceback
    assert house.views.failures(house.submit(axes={"x": [77]})) == []
    house.drain()


def test_events_go_on_after_the_last_one_seen(house: House) -> None:
    sweep, other = house.submit(axes={"x": [1]}), house.submit(axes={"x": [2]})
    house.drain()
    events = house.views.events(sweep, 0, 100)
    assert [event.type for event in events][-1] == TERMINAL_EVENT
    assert {event.sweep for event in events} == {sweep}
    assert house.views.events(sweep, events[0].id, 1) == [events[1]]
    assert house.views.events(sweep, events[-1].id, 10) == []
    assert events[-1].data["counts"] == {"succeeded": 1}
    assert {event.id for event in events}.isdisjoint(event.id for event in house.views.events(other, 0, 100))
    again = House(house.root)  # they are there after a restart
    assert again.views.events(sweep, 0, 100) == events
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
    house.runner.begin(one)
    house.step()
    assert house.views.sweep(first).remaining_s is None  # nothing is known of the other call
    now += 10.0
    house.runner.say(Advanced(one, 1, 5, ""))
    house.runner.begin(two)
    house.step()
    now += 10.0
    house.runner.say(Advanced(two, 1, 2, ""))
    house.step()
    # One is at it for 20 s and has four fifths to go, the other for 10 s and has one half to go; there are two cores.
    assert house.views.sweep(first).remaining_s == pytest.approx((20 * 4 + 10) / 2)
    assert house.views.sweep(second).remaining_s == house.views.sweep(first).remaining_s
    assert [activity.call for activity in house.views.sweep(second).active] == [one, two]
    house.drain()
    assert house.views.sweep(first).remaining_s == 0.0
    third = house.submit(axes={"group": [0], "x": list(range(10, 20))})
    with house.ledger.read() as connection:
        mean = connection.exec_driver_sql("SELECT sum(seconds) / sum(size) FROM calls WHERE seconds > 0").scalar()
    assert mean is not None
    assert house.views.sweep(third).remaining_s == pytest.approx(10 * mean / 2)
    house.drain()


def test_the_summary_is_the_experiments_own_over_the_sweeps_rows(house: House) -> None:
    small = house.submit(axes={"x": [1, 2]})
    empty = house.views.summary(small)
    assert (list(empty.rows), empty.complete) == ([{"n": 0, "total": 0}], False)
    house.drain()
    house.submit(axes={"x": [3, 4]})
    house.drain()
    both = house.submit(axes={"x": [2, 3]})  # computed by others
    view = house.views.summary(both)
    assert (view.sweep, view.title, view.columns, view.complete) == (both, "Rows", ["n", "total"], True)
    assert view.rows == [{"n": 2, "total": 10.0}]
    lost = house.submit(axes={"x": [1, 5]}, include=[{"x": 6, "behaviour": "nan"}, {"x": 7, "behaviour": "raise"}])
    house.drain()
    view = house.views.summary(lost)
    assert not view.complete
    assert view.rows == [{"n": 1, "total": 2.0}]  # one call of three failed whole


def test_diverged_rows_are_rows_of_the_summary_without_their_number(house: House) -> None:
    sweep = house.submit(axes={"x": [1], "behaviour": ["ok", "nan"]})
    house.drain()
    view = house.views.summary(sweep)
    assert view.complete
    assert view.rows == [{"n": 2, "total": 2.0}]
    assert all(not isinstance(value, float) or math.isfinite(value) for row in view.rows for value in row.values())


def test_tables_of_all_sweeps_are_there_for_sql(house: House) -> None:
    one, two = house.submit(name="one", axes={"x": [1, 2]}), house.submit(name="two", axes={"x": [2]})
    house.control.cancel(two)
    cells = house.views.cells_table()
    assert cells.schema.names == ["sweep", "idx", "cell", "state"]
    found = sorted((row["sweep"], row["idx"], row["state"]) for row in cells.to_pylist())
    assert found == sorted([(one, 0, "pending"), (one, 1, "pending"), (two, 0, "cancelled")])
    sweeps = house.views.sweeps_table().to_pylist()
    assert [(row["id"], row["name"], row["state"], row["cells"]) for row in sweeps] == [
        (one, "one", "pending", 2),
        (two, "two", "cancelled", 1),
    ]
    assert sweeps[0]["finished_at"] is None
    assert sweeps[1]["finished_at"].tzinfo is not None
    house.drain()
    assert {row["state"] for row in house.views.cells_table().to_pylist()} == {"succeeded", "cancelled"}
