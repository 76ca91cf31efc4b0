"""Transitions: only legal steps change a state, and counts, needs, waits and events follow in the same transaction."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import sqlalchemy as sa
from ledger_rows import add_call, add_cell, add_stage, add_sweep, add_task, states

from creditgrid.core.states import FINISHED, OPEN, RESULT, State
from creditgrid.core.wire import TERMINAL_EVENT
from creditgrid.service.ledger import counts, tables, transitions
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.queries import ready_calls
from creditgrid.service.ledger.tables import CELLS, CHUNK
from creditgrid.service.ledger.transitions import CALL, CELL, STAGE, SWEEP, TASK, legal_before

PENDING, QUEUED, RUNNING = State.PENDING, State.QUEUED, State.RUNNING
SUCCEEDED, CACHED, FAILED = State.SUCCEEDED, State.CACHED, State.FAILED
CANCELLED, SKIPPED = State.CANCELLED, State.SKIPPED
ALL = {"sweep": SWEEP, "call": CALL, "task": TASK, "stage": STAGE, "cell": CELL}


# -- the tables of legal transitions -------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ALL.values(), ids=ALL.keys())
def test_every_open_state_can_be_left_without_a_result(table: transitions.Transitions) -> None:
    for state in table.keys() & set(OPEN):
        assert {FAILED, CANCELLED} <= set(table[state])


@pytest.mark.parametrize("table", ALL.values(), ids=ALL.keys())
def test_a_finished_state_leads_only_to_pending(table: transitions.Transitions) -> None:
    for state in table.keys() & set(FINISHED):
        assert table[state] == (PENDING,)


@pytest.mark.parametrize("table", ALL.values(), ids=ALL.keys())
def test_legal_before_is_the_table_read_backwards(table: transitions.Transitions) -> None:
    for after in State:
        assert set(legal_before(table, after)) == {state for state in table if after in table[state]}


def test_a_call_that_ended_and_a_cell_with_rows_never_change() -> None:
    assert not CALL.keys() & set(FINISHED)
    assert not CELL.keys() & set(RESULT)


def test_only_a_call_that_the_runner_had_succeeds() -> None:
    assert set(legal_before(CALL, SUCCEEDED)) == {QUEUED, RUNNING}
    assert set(legal_before(CALL, QUEUED)) == {PENDING}
    assert set(legal_before(CALL, RUNNING)) == {QUEUED}
    assert set(legal_before(CALL, PENDING)) == {QUEUED, RUNNING}
    assert set(legal_before(CALL, SKIPPED)) == {PENDING}


# -- calls ---------------------------------------------------------------------------------------------------------

STEPS: dict[State, Callable[[sa.Connection, int], Any]] = {
    PENDING: lambda connection, call: transitions.requeue_call(connection, call, host="h"),
    QUEUED: transitions.queue_call,
    RUNNING: lambda connection, call: transitions.start_call(connection, call, "h", "text"),
    SUCCEEDED: lambda connection, call: transitions.finish_call(connection, call, "text", seconds=1.0, host="h"),
    FAILED: lambda connection, call: transitions.fail_call(connection, call, "text", host="h"),
    CANCELLED: transitions.cancel_call,
    SKIPPED: transitions.skip_call,
}


def test_a_call_takes_only_legal_steps(ledger: Ledger) -> None:
    for before, after in itertools.product(State, STEPS):
        with ledger.write() as connection:
            call, other = add_call(connection, before), add_call(connection, before)
            STEPS[after](connection, call)
            row = connection.execute(sa.select(tables.calls).where(tables.calls.c.id == call)).one()
            legal = after in CALL.get(before, ())
            with_host = legal and after not in (QUEUED, CANCELLED, SKIPPED)
            assert (row.state, row.host) == (after if legal else before, "h" if with_host else None)
            assert connection.scalar(sa.select(tables.calls.c.state).where(tables.calls.c.id == other)) == before
            STEPS[after](connection, 10**6)  # an unknown call


def test_a_call_waits_until_all_its_inputs_have_ended(ledger: Ledger) -> None:
    with ledger.write() as connection:
        add_sweep(connection, "s")
        owner, call, free = add_call(connection, RUNNING), add_call(connection), add_call(connection)
        for key in ("one", "two", "three"):
            add_task(connection, key, owner)
        transitions.await_tasks(connection, call, ["one", "two", "three"])
        transitions.count_waits(connection, ["one", "two", "three"])

        def ready() -> list[int]:
            return [row.id for row in ready_calls(connection, "s", 1.0, 9)]

        assert ready() == [free]
        transitions.skip_tasks(connection, owner, ["one"], "blame", "text")
        transitions.keep_tasks(connection, owner, ["two"])
        assert ready() == [free]
        assert connection.scalar(sa.select(tables.calls.c.waiting).where(tables.calls.c.id == call)) == 1
        transitions.finish_call(connection, owner, "text")
        assert ready() == [call, free]


def test_a_call_is_split(ledger: Ledger) -> None:
    keys = [f"k{n}" for n in range(CHUNK + 7)]
    with ledger.write() as connection:
        add_sweep(connection, "s")
        call = add_call(connection, attempt=3, crashes=2, size=len(keys) + 1)
        for idx, key in enumerate(keys):
            add_task(connection, key, call)
            add_cell(connection, "s", idx, key, call)
        add_task(connection, "ended", call, SUCCEEDED)
        connection.execute(tables.waits.insert().values(call=call, key="base"))
        counts.recount_sweep(connection, "s")
        counts.recount_backlog(connection, "s")
        made = transitions.split_call(connection, call, [keys[1 : CHUNK + 5], keys[CHUNK + 5 :]])
        (left,) = counts.backlogs(connection, ["s"])["s"]
        assert (left.planned, left.open) == (3, 3)
        rows = {row.id: row for row in connection.execute(sa.select(tables.calls))}
        assert [rows[number].size for number in (call, *made)] == [1, CHUNK + 4, 2]
        assert {(row.sweep, row.attempt, row.crashes, row.state) for row in rows.values()} == {("s", 3, 2, "pending")}
        for table in (tables.tasks, tables.cells):
            owner = {row.key: row.call for row in connection.execute(sa.select(table.c.key, table.c.call))}
            assert owner.pop("ended", call) == call
            assert owner == {key: call if n < 1 else made[n >= CHUNK + 5] for n, key in enumerate(keys)}
        waiting = connection.scalars(sa.select(tables.waits.c.call).where(tables.waits.c.key == "base"))
        assert sorted(waiting) == sorted((call, *made))
        needed = {row.call: row.open for row in connection.execute(sa.select(tables.needs))}
        assert needed == {call: 1, made[0]: CHUNK + 4, made[1]: 2}
        assert counts.count_cells(connection, "s") == {PENDING: len(keys)}


# -- tasks, stages and cells ---------------------------------------------------------------------------------------


def test_the_end_of_a_call_ends_its_tasks_for_every_sweep_that_needs_them(ledger: Ledger) -> None:
    with ledger.write() as connection:
        for sweep in ("s1", "s2", "s3"):
            add_sweep(connection, sweep)
        call, other = add_call(connection, RUNNING), add_call(connection)
        for key, owner in (("a", call), ("b", call), ("c", other)):
            add_task(connection, key, owner)
        add_task(connection, "skipped", call, SKIPPED)
        add_cell(connection, "s1", 0, "a", call)
        add_cell(connection, "s2", 5, "a", call)
        add_cell(connection, "s1", 1, "c", other)
        add_stage(connection, "s1", "b", call)
        for sweep in ("s1", "s2", "s3"):
            counts.recount_sweep(connection, sweep)
        assert counts.count_cells(connection, "s1") == {RUNNING: 1, PENDING: 1}
        assert transitions.finish_call(connection, call, "text", seconds=2.0, host="h") == ["s1", "s2"]
        assert states(connection, tables.tasks) == {"a": SUCCEEDED, "b": SUCCEEDED, "c": PENDING, "skipped": SKIPPED}
        assert states(connection, tables.cells) == {"a": SUCCEEDED, "c": PENDING}
        assert states(connection, tables.stages) == {"b": SUCCEEDED}
        ended = sa.select(sa.func.count()).where(tables.cells.c.key == "a", tables.cells.c.state == SUCCEEDED)
        assert connection.scalar(ended) == 2
        assert counts.count_all(connection, ["s1", "s2"]) == {
            "s1": {CELLS: {SUCCEEDED: 1, PENDING: 1}, "k": {SUCCEEDED: 1}},
            "s2": {CELLS: {SUCCEEDED: 1}},
        }
        assert {row.sweep for row in connection.execute(sa.select(tables.events))} == {"s1", "s2"}
        assert transitions.fail_call(connection, call, "text") is None  # finished is final
        assert states(connection, tables.tasks)["a"] == SUCCEEDED


def test_some_tasks_of_a_call_end_before_the_others(ledger: Ledger) -> None:
    keys = [f"k{n}" for n in range(2 * CHUNK + 3)]
    with ledger.write() as connection:
        add_sweep(connection, "s")
        call = add_call(connection)
        transitions.create_tasks(connection, [(key, "k", call, "{}", "{}") for key in keys])
        cells = [(n, key, call, PENDING) for n, key in enumerate(keys)]
        transitions.create_cells(connection, "s", cells)
        counts.recount_sweep(connection, "s")
        assert transitions.skip_tasks(connection, call, keys[1:], "blame", "text") == ["s"]
        assert Counter(states(connection, tables.tasks).values()) == {SKIPPED: len(keys) - 1, PENDING: 1}
        assert counts.count_cells(connection, "s") == {SKIPPED: len(keys) - 1, PENDING: 1}
        transitions.skip_tasks(connection, call, [], "blame", "text")
        assert states(connection, tables.tasks)["k0"] == PENDING
        transitions.keep_tasks(connection, call, keys)  # skipped tasks stay skipped
        assert counts.count_cells(connection, "s") == {SKIPPED: len(keys) - 1, SUCCEEDED: 1}
        assert connection.execute(sa.select(tables.needs)).all() == []


def test_a_task_that_has_not_ended_and_a_cell_with_rows_are_not_replaced(ledger: Ledger) -> None:
    with ledger.write() as connection:
        add_sweep(connection, "s")
        for idx, state in enumerate(State):
            add_task(connection, f"task {state}", 1, state)
            add_cell(connection, "s", idx, "c", 1, state)

    def adopt(connection: sa.Connection, idx: int) -> None:
        add_sweep(connection, "plan", planned=False)
        transitions.create_cells(connection, "plan", [(idx, "c", 2, PENDING)])
        transitions.adopt_plan(connection, "plan", "s", "sweep.retried", "again")

    for idx, state in enumerate(State):
        new = [(f"task {state}", "k", 2, "{}", "{}")]
        for table, write in (
            (TASK, lambda c, new=new, state=state: transitions.create_tasks(c, new, [f"task {state}"])),
            (CELL, lambda c, idx=idx: adopt(c, idx)),
        ):
            if PENDING in table.get(state, ()):
                with ledger.write() as connection:
                    write(connection)
            else:
                with pytest.raises(sa.exc.IntegrityError), ledger.write() as connection:
                    write(connection)


def test_a_lost_artifact_is_pending_again_for_the_open_sweeps_that_have_it(ledger: Ledger) -> None:
    with ledger.write() as connection:
        for sweep, state in (("open", RUNNING), ("ended", SUCCEEDED), ("new", RUNNING)):
            add_sweep(connection, sweep, state)
        made = add_call(connection, SUCCEEDED)
        add_task(connection, "a", made, SUCCEEDED)
        add_stage(connection, "open", "a", None, CACHED)
        add_stage(connection, "ended", "a", made, SUCCEEDED)
        for sweep in ("open", "ended", "new"):
            counts.recount_sweep(connection, sweep)
        call = transitions.recompute_task(connection, "a", "k", ["new", "open"])
        assert states(connection, tables.tasks) == {"a": PENDING}
        stages = {row.sweep: (row.state, row.call) for row in connection.execute(sa.select(tables.stages))}
        assert stages == {"open": (PENDING, call), "new": (PENDING, call), "ended": (SUCCEEDED, made)}
        assert counts.count_all(connection, ["open", "new", "ended"]) == {
            "open": {"k": {PENDING: 1}},
            "new": {"k": {PENDING: 1}},
            "ended": {"k": {SUCCEEDED: 1}},
        }
        assert counts.sweeps_needing(connection, call) == ["open", "new"]


# -- sweeps --------------------------------------------------------------------------------------------------------


def end_of(connection: sa.Connection, sweep: str) -> Mapping[str, Any]:
    """The data of the sweep's terminal event."""
    query = sa.select(tables.events.c.data).where(
        tables.events.c.sweep == sweep, tables.events.c.type == TERMINAL_EVENT
    )
    return dict(json.loads(connection.execute(query).scalar_one()))


@pytest.mark.parametrize(
    ("cells", "end"),
    [
        ([SUCCEEDED, CACHED], SUCCEEDED),
        ([CACHED], CACHED),
        ([SUCCEEDED, FAILED, CANCELLED], FAILED),
        ([SUCCEEDED, SKIPPED], FAILED),
        ([SUCCEEDED, CANCELLED], CANCELLED),
    ],
)
def test_the_cells_decide_how_a_sweep_ends(ledger: Ledger, cells: list[State], end: State) -> None:
    with ledger.write() as connection:
        add_sweep(connection, "s", RUNNING, paused=True)
        call = add_call(connection)
        for idx, state in enumerate([*cells, PENDING]):
            add_cell(connection, "s", idx, f"k{idx}", call if state is PENDING else None, state)
        counts.recount_sweep(connection, "s")
        assert transitions.finish_sweep(connection, "s") is None  # a cell is open
        connection.execute(tables.cells.delete().where(tables.cells.c.state == PENDING))
        counts.recount_sweep(connection, "s")
        assert transitions.finish_sweep(connection, "s") is end
        row = connection.execute(sa.select(tables.sweeps)).one()
        assert (row.state, row.paused, row.stopped) == (end, False, None)
        assert row.finished_at is not None
        data = end_of(connection, "s")
        assert (data["state"], data["counts"]) == (end, dict(Counter(map(str, cells))))
        assert transitions.finish_sweep(connection, "s") is None  # it has ended


def test_a_sweep_that_stops_cancels_the_calls_that_no_other_needs(ledger: Ledger) -> None:
    with ledger.write() as connection:
        add_sweep(connection, "stops", RUNNING)
        add_sweep(connection, "other", RUNNING)
        add_sweep(connection, "ended", SUCCEEDED)
        alone, shared = add_call(connection, RUNNING, sweep="stops"), add_call(connection, QUEUED, sweep="stops")
        writing, waits = add_call(connection, RUNNING, sweep="stops", batch=7), add_call(connection, sweep="other")
        for key, call in (("a", alone), ("b", shared), ("c", writing), ("d", waits)):
            add_task(connection, key, call)
            add_cell(connection, "stops", ord(key), key, call)
        add_cell(connection, "stops", 0, "done", None, SUCCEEDED)
        add_cell(connection, "other", 0, "b", shared)
        add_cell(connection, "other", 1, "d", waits)
        add_stage(connection, "ended", "a", alone)  # left open when the sweep ended
        transitions.await_tasks(connection, waits, ["a"])
        transitions.count_waits(connection, ["a"])
        for sweep in ("stops", "other", "ended"):
            counts.recount_sweep(connection, sweep)
        transitions.stop_sweep(connection, "stops", CANCELLED, "cancelled")
        calls = {row.id: (row.state, row.sweep, row.waiting) for row in connection.execute(sa.select(tables.calls))}
        assert calls == {
            alone: (CANCELLED, "stops", 0),
            shared: (QUEUED, "other", 0),
            writing: (RUNNING, "stops", 0),
            waits: (PENDING, "other", 0),
        }
        assert states(connection, tables.tasks) == {"a": CANCELLED, "b": PENDING, "c": PENDING, "d": PENDING}
        assert counts.count_all(connection, ["stops", "other", "ended"]) == {
            "stops": {CELLS: {CANCELLED: 4, SUCCEEDED: 1}},
            "other": {CELLS: {QUEUED: 1, PENDING: 1}},
            "ended": {"k": {CANCELLED: 1}},
        }
        assert end_of(connection, "stops")["message"] == "cancelled: cancelled"
        transitions.stop_sweep(connection, "stops", FAILED, "again")  # finished is final
        assert connection.scalar(sa.select(tables.sweeps.c.state).where(tables.sweeps.c.id == "stops")) == CANCELLED


def test_an_ended_sweep_is_reopened_and_an_open_one_stays(ledger: Ledger) -> None:
    for state in State:
        with ledger.write() as connection:
            add_sweep(connection, state, state, stopped="why", finished_at=1.0)
            add_sweep(connection, f"plan of {state}", planned=False)
            transitions.adopt_plan(connection, f"plan of {state}", state, "sweep.extended", "more")
            row = connection.execute(sa.select(tables.sweeps).where(tables.sweeps.c.id == state)).one()
            opened = PENDING in SWEEP.get(state, ())
            assert row.state == (PENDING if opened else state)
            assert (row.stopped, row.finished_at) == ((None, None) if opened else ("why", 1.0))
