"""One suite over every database that the ledger may live in.

SQLite always; PostgreSQL where CREDITGRID_TEST_POSTGRES is the URL of a database whose tables may be dropped.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from creditgrid.core.errors import CreditGridError
from creditgrid.core.states import FINISHED, OPEN, TRANSITIONS, State
from creditgrid.service import ledger as db
from creditgrid.service.ledger import CHUNK, SCHEMA_VERSION, Ledger

POSTGRES = os.environ.get("CREDITGRID_TEST_POSTGRES")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.sqlite'}"
        return
    if POSTGRES is None:
        pytest.skip("CREDITGRID_TEST_POSTGRES names no database")
    yield POSTGRES
    engine = sa.create_engine(POSTGRES)
    db.metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture
def opened(url: str) -> Iterator[Callable[[], Ledger]]:
    """Opens the ledger, as often as one likes."""
    made: list[Ledger] = []

    def go() -> Ledger:
        made.append(Ledger(url))
        return made[-1]

    yield go
    for ledger in made:
        ledger.close()


@pytest.fixture
def ledger(opened: Callable[[], Ledger]) -> Ledger:
    return opened()


def add_sweep(connection: sa.Connection, sweep: str, state: State = State.PENDING) -> None:
    row = {"id": sweep, "name": "n", "experiment": "e", "state": state, "priority": 0, "spec": "{}", "cells": 0}
    connection.execute(db.sweeps.insert().values(**row, created_at=0.0))


def add_call(connection: sa.Connection, state: State = State.PENDING, **values: Any) -> int:
    row = {
        "sweep": "s",
        "seq": 1,
        "kind": "k",
        "state": state,
        "priority": 0,
        "size": 1,
        "attempt": 1,
        "not_before": 0.0,
    }
    made = connection.execute(db.calls.insert().values(**{**row, **values}))
    assert made.inserted_primary_key is not None
    return int(made.inserted_primary_key[0])


def add_task(connection: sa.Connection, key: str, call: int, state: State = State.PENDING) -> None:
    connection.execute(db.tasks.insert().values(**{**db.task_row(key, "k", call, "{}"), "state": state}))


def add_cell(
    connection: sa.Connection, sweep: str, idx: int, key: str, call: int | None, state: State = State.PENDING
) -> None:
    connection.execute(db.cells.insert().values(sweep=sweep, idx=idx, key=key, call=call, state=state))


def add_stage(connection: sa.Connection, sweep: str, key: str, call: int | None, state: State = State.PENDING) -> None:
    connection.execute(db.stages.insert().values(sweep=sweep, key=key, call=call, state=state))


def states(connection: sa.Connection, table: sa.Table) -> dict[str, str]:
    return {row.key: row.state for row in connection.execute(sa.select(table.c.key, table.c.state))}


class Crash(BaseException):
    """The process dies here."""


def crash_after(ledger: Ledger, step: Callable[[sa.Connection], None]) -> None:
    """Take the step in a transaction that is never committed."""

    def die() -> None:
        with ledger.write() as connection:
            step(connection)
            raise Crash

    with pytest.raises(Crash):
        die()


# -- transactions --------------------------------------------------------------------------------------------------


def test_what_is_written_is_there_after_a_restart(opened: Callable[[], Ledger]) -> None:
    first = opened()
    with first.write() as connection:
        add_sweep(connection, "s")
    first.close()
    with opened().read() as connection:
        assert connection.scalar(sa.select(db.sweeps.c.id)) == "s"


def test_a_transaction_happens_whole_or_not_at_all(ledger: Ledger) -> None:
    def half(connection: sa.Connection) -> None:
        add_sweep(connection, "s")
        db.add_event(connection, "s", "t", "{}")

    crash_after(ledger, half)
    with ledger.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(db.sweeps)) == 0
        assert connection.scalar(sa.select(sa.func.count()).select_from(db.events)) == 0
    with ledger.write() as connection:  # and the next one is not in its way
        add_sweep(connection, "s")


def test_readers_neither_wait_for_a_writer_nor_see_what_is_not_committed(ledger: Ledger) -> None:
    seen: list[int | None] = []

    def read() -> None:
        with ledger.read() as connection:
            seen.append(connection.scalar(sa.select(sa.func.count()).select_from(db.sweeps)))

    with ledger.write() as connection:
        add_sweep(connection, "s")
        reader = threading.Thread(target=read)
        reader.start()
        reader.join(10)
        assert seen == [0]
    read()
    assert seen == [0, 1]


def test_writers_take_turns(ledger: Ledger) -> None:
    with ledger.write() as connection:
        connection.execute(db.meta.insert().values(name="count", value="0"))
    troubles: list[BaseException] = []

    def add() -> None:
        try:
            for _ in range(10):
                with ledger.write() as connection:
                    found = connection.scalar(sa.select(db.meta.c.value).where(db.meta.c.name == "count"))
                    query = db.meta.update().where(db.meta.c.name == "count").values(value=str(int(found or 0) + 1))
                    connection.execute(query)
        except BaseException as error:
            troubles.append(error)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert troubles == []
    with ledger.read() as connection:
        assert connection.scalar(sa.select(db.meta.c.value).where(db.meta.c.name == "count")) == "40"


def test_a_ledger_keeps_its_identity(opened: Callable[[], Ledger], tmp_path: Path) -> None:
    identity = opened().identity()
    assert identity == opened().identity() == opened().identity()
    other = Ledger(f"sqlite:///{tmp_path / 'other.sqlite'}")
    assert other.identity() != identity
    other.close()


def test_a_ledger_of_another_schema_is_refused_and_left_alone(opened: Callable[[], Ledger], url: str) -> None:
    with opened().write() as connection:
        connection.execute(db.meta.update().where(db.meta.c.name == "schema").values(value=str(SCHEMA_VERSION + 1)))
    with pytest.raises(CreditGridError, match=f"has schema {SCHEMA_VERSION + 1} and this version works with"):
        opened()
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        assert connection.scalar(sa.select(db.meta.c.value).where(db.meta.c.name == "schema")) == str(
            SCHEMA_VERSION + 1
        )
    engine.dispose()


# -- calls ---------------------------------------------------------------------------------------------------------


def test_a_call_takes_legal_steps_alone(ledger: Ledger) -> None:
    for before, after in itertools.product(State, State):
        with ledger.write() as connection:
            call, other = add_call(connection, before), add_call(connection, before)
            legal = after in TRANSITIONS[before]
            assert db.move_call(connection, call, after, host="h") is legal
            row = connection.execute(sa.select(db.calls).where(db.calls.c.id == call)).one()
            assert (row.state, row.host) == ((after, "h") if legal else (before, None))
            assert connection.scalar(sa.select(db.calls.c.state).where(db.calls.c.id == other)) == before
            assert db.move_call(connection, 10**6, after) is False


def test_ready_calls_come_by_urgency_then_age(ledger: Ledger) -> None:
    with ledger.write() as connection:
        late = add_call(connection, seq=2)
        early = add_call(connection, seq=1)
        also_early = add_call(connection, seq=1)
        urgent = add_call(connection, seq=9, priority=5)
        idle = add_call(connection, seq=0, priority=-5)
        add_call(connection, seq=0, not_before=101.0)
        for state in State:
            if state is not State.PENDING:
                add_call(connection, state, seq=0)
        order = [urgent, early, also_early, late, idle]
        assert [row.id for row in db.ready_calls(connection, 100.0, 50)] == order
        assert [row.id for row in db.ready_calls(connection, 100.0, 2)] == order[:2]
        assert len(db.ready_calls(connection, 101.0, 50)) == len(order) + 1


def test_a_call_waits_until_all_it_stands_on_has_ended(ledger: Ledger) -> None:
    with ledger.write() as connection:
        call = add_call(connection)
        free = add_call(connection)
        for key in ("one", "two"):
            add_task(connection, key, 99)
            connection.execute(db.waits.insert().values(call=call, key=key))
        assert [row.id for row in db.ready_calls(connection, 1.0, 9)] == [free]
        connection.execute(db.tasks.update().where(db.tasks.c.key == "one").values(state=State.SUCCEEDED))
        assert [row.id for row in db.ready_calls(connection, 1.0, 9)] == [free]
        for state in FINISHED:
            connection.execute(db.tasks.update().where(db.tasks.c.key == "two").values(state=state))
            assert [row.id for row in db.ready_calls(connection, 1.0, 9)] == [call, free]


def test_open_calls_are_those_a_sweep_waits_for(ledger: Ledger) -> None:
    with ledger.write() as connection:
        own = add_call(connection, State.RUNNING, sweep="s")
        shared = add_call(connection, State.QUEUED, sweep="another")
        ended = add_call(connection, State.SUCCEEDED, sweep="s")
        add_call(connection, State.PENDING, sweep="another")
        add_cell(connection, "s", 0, "a", own)
        add_cell(connection, "s", 1, "b", own)
        add_cell(connection, "s", 2, "c", ended)
        add_cell(connection, "s", 3, "d", None)
        add_cell(connection, "s", 4, "e", None, State.CACHED)
        add_stage(connection, "s", "f", shared)
        assert [row.id for row in db.open_calls(connection, "s")] == [own, shared]
        assert db.open_calls(connection, "unknown") == []


# -- tasks and cells -----------------------------------------------------------------------------------------------


def test_a_calls_end_is_told_to_every_sweep_that_needs_it(ledger: Ledger) -> None:
    with ledger.write() as connection:
        call, other = add_call(connection), add_call(connection)
        for key, owner in (("a", call), ("b", call), ("c", other)):
            add_task(connection, key, owner)
        add_task(connection, "skipped", call, State.SKIPPED)
        add_cell(connection, "s1", 0, "a", call)
        add_cell(connection, "s2", 5, "a", call)
        add_cell(connection, "s1", 1, "c", other)
        add_stage(connection, "s1", "b", call)
        db.settle_tasks(connection, call, State.SUCCEEDED)
        done, pending, skipped = State.SUCCEEDED, State.PENDING, State.SKIPPED
        assert states(connection, db.tasks) == {"a": done, "b": done, "c": pending, "skipped": skipped}
        assert states(connection, db.cells) == {"a": done, "c": pending}
        assert states(connection, db.stages) == {"b": done}
        ended = connection.scalar(sa.select(sa.func.count()).where(db.cells.c.key == "a", db.cells.c.state == done))
        assert ended == 2
        db.settle_tasks(connection, call, State.FAILED)  # finished is final
        assert states(connection, db.tasks)["a"] == done


def test_some_tasks_of_a_call_end_before_the_others(ledger: Ledger) -> None:
    keys = [f"k{n}" for n in range(2 * CHUNK + 3)]
    with ledger.write() as connection:
        call = add_call(connection)
        connection.execute(db.tasks.insert(), [db.task_row(key, "k", call, "{}") for key in keys])
        db.settle_tasks(connection, call, State.SKIPPED, keys[1:])
        assert Counter(states(connection, db.tasks).values()) == {State.SKIPPED: len(keys) - 1, State.PENDING: 1}
        db.settle_tasks(connection, call, State.SKIPPED, [])
        assert states(connection, db.tasks)["k0"] == State.PENDING


def test_only_open_sweeps_need_a_call(ledger: Ledger) -> None:
    with ledger.write() as connection:
        call = add_call(connection)
        for sweep in ("by cell", "by stage", "not"):
            add_sweep(connection, sweep)
        add_cell(connection, "by cell", 0, "a", call)
        add_cell(connection, "by cell", 1, "b", call)
        add_stage(connection, "by stage", "a", call)
        for state in State:
            connection.execute(db.sweeps.update().values(state=state))
            assert db.sweeps_of(connection, call) == (["by cell", "by stage"] if state in OPEN else [])


STATES = st.sampled_from(State)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(STATES, min_size=1, max_size=4), st.lists(st.tuples(st.none() | st.integers(0, 3), STATES), max_size=30)
)
def test_counts_add_up_to_the_cells(ledger: Ledger, calls: list[State], cells: list[tuple[int | None, State]]) -> None:
    def check(connection: sa.Connection) -> None:
        wanted: Counter[State] = Counter()
        ids = [add_call(connection, state) for state in calls]
        for idx, (which, state) in enumerate(cells):
            call = None if which is None else which % len(calls)
            add_cell(connection, "s", idx, f"k{idx}", None if call is None else ids[call], state)
            # Queued and running are told by the call alone; a cell's own row is pending until it has ended.
            if state is not State.PENDING:
                wanted[state] += 1
            elif call is None:
                wanted[State.PENDING] += 1
            else:
                wanted[calls[call] if calls[call] in OPEN else State.RUNNING] += 1
        add_cell(connection, "another", 0, "k", None)
        found = db.count_cells(connection, "s")
        assert sum(found.values()) == len(cells)
        assert found == dict(wanted)

    crash_after(ledger, check)  # nothing is left for the next example


# -- events --------------------------------------------------------------------------------------------------------


def test_event_ids_grow_and_are_never_used_again(opened: Callable[[], Ledger]) -> None:
    first = opened()
    for n in range(3):
        with first.write() as connection:
            db.add_event(connection, "s", "t", f'{{"n":{n}}}')
    with first.write() as connection:
        ids = list(connection.scalars(sa.select(db.events.c.id).order_by(db.events.c.id)))
        connection.execute(db.events.delete().where(db.events.c.id == ids[-1]))
    first.close()
    with opened().write() as connection:
        db.add_event(connection, "s", "t", "{}")
        newest = connection.scalar(sa.select(sa.func.max(db.events.c.id)))
    assert ids == sorted(ids)
    assert newest is not None
    assert newest > ids[-1]


def test_large_artifacts_fit(ledger: Ledger) -> None:
    with ledger.write() as connection:
        add_task(connection, "k", 1)
        connection.execute(db.tasks.update().values(bytes=2**40))
        assert connection.scalar(sa.select(db.tasks.c.bytes)) == 2**40


def test_keys_come_in_pieces_that_fit_a_statement() -> None:
    keys = [str(n) for n in range(2 * CHUNK + 1)]
    pieces = list(db.chunks(keys))
    assert [key for piece in pieces for key in piece] == keys
    assert max(map(len, pieces)) == CHUNK
    assert list(db.chunks([])) == []


def test_every_state_is_counted_among_open_or_finished() -> None:
    assert set(OPEN) | set(FINISHED) == set(State)
