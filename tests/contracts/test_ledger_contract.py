"""One suite over every database that the ledger may live in.

SQLite always; PostgreSQL where CREDITGRID_TEST_POSTGRES is the URL of a server whose user may create databases.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from postgresql import fresh_database

from creditgrid.core.errors import ConflictError
from creditgrid.core.states import FINISHED, OPEN, TRANSITIONS, State
from creditgrid.service.ledger import tables
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.tables import CHUNK


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.sqlite'}"
        return
    with fresh_database() as found:
        yield found.url


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


def add_sweep(connection: sa.Connection, sweep: str, state: State = State.PENDING, **values: Any) -> None:
    row = {"id": sweep, "name": "n", "experiment": "e", "state": state, "priority": 0, "spec": "{}", "cells": 0}
    connection.execute(tables.sweeps.insert().values(**{**row, **values}, created_at=0.0))


def add_call(connection: sa.Connection, state: State = State.PENDING, **values: Any) -> int:
    row = {"sweep": "s", "kind": "k", "state": state, "size": 1}
    made = connection.execute(tables.calls.insert().values(**{**row, **values}))
    assert made.inserted_primary_key is not None
    return int(made.inserted_primary_key[0])


def add_task(connection: sa.Connection, key: str, call: int, state: State = State.PENDING) -> None:
    connection.execute(tables.tasks.insert().values(**{**tables.task_row(key, "k", call, "{}"), "state": state}))


def add_cell(
    connection: sa.Connection, sweep: str, idx: int, key: str, call: int | None, state: State = State.PENDING
) -> None:
    connection.execute(tables.cells.insert().values(sweep=sweep, idx=idx, key=key, call=call, state=state))


def add_stage(connection: sa.Connection, sweep: str, key: str, call: int | None, state: State = State.PENDING) -> None:
    connection.execute(tables.stages.insert().values(sweep=sweep, key=key, call=call, state=state))


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
        assert connection.scalar(sa.select(tables.sweeps.c.id)) == "s"


def test_a_transaction_happens_whole_or_not_at_all(ledger: Ledger) -> None:
    def half(connection: sa.Connection) -> None:
        add_sweep(connection, "s")
        tables.add_event(connection, "s", "t", "{}")

    crash_after(ledger, half)
    with ledger.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(tables.sweeps)) == 0
        assert connection.scalar(sa.select(sa.func.count()).select_from(tables.events)) == 0
    with ledger.write() as connection:  # and the next one is not in its way
        add_sweep(connection, "s")


def test_readers_neither_wait_for_a_writer_nor_see_what_is_not_committed(ledger: Ledger) -> None:
    seen: list[int | None] = []

    def read() -> None:
        with ledger.read() as connection:
            seen.append(connection.scalar(sa.select(sa.func.count()).select_from(tables.sweeps)))

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
        connection.execute(tables.meta.insert().values(name="count", value="0"))
    troubles: list[BaseException] = []

    def add() -> None:
        try:
            for _ in range(10):
                with ledger.write() as connection:
                    found = connection.scalar(sa.select(tables.meta.c.value).where(tables.meta.c.name == "count"))
                    query = (
                        tables.meta.update().where(tables.meta.c.name == "count").values(value=str(int(found or 0) + 1))
                    )
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
        assert connection.scalar(sa.select(tables.meta.c.value).where(tables.meta.c.name == "count")) == "40"


def test_a_ledger_keeps_its_identity(opened: Callable[[], Ledger], tmp_path: Path) -> None:
    identity = opened().identity()
    assert identity == opened().identity() == opened().identity()
    other = Ledger(f"sqlite:///{tmp_path / 'other.sqlite'}")
    assert other.identity() != identity
    other.close()


def test_a_reader_sees_one_moment(ledger: Ledger) -> None:
    with ledger.write() as connection:
        add_sweep(connection, "a")
    with ledger.read() as reader:
        count = sa.select(sa.func.count()).select_from(tables.sweeps)
        assert reader.scalar(count) == 1
        with ledger.write() as connection:
            add_sweep(connection, "b")
        assert reader.scalar(count) == 1
    with ledger.read() as reader:
        assert reader.scalar(count) == 2


def test_writers_of_several_processes_take_turns(opened: Callable[[], Ledger], url: str) -> None:
    with opened().write() as connection:
        connection.execute(tables.meta.insert().values(name="count", value="0"))
    program = (
        "import sys; import sqlalchemy as sa\n"
        "from creditgrid.service.ledger.ledger import Ledger\n"
        "from creditgrid.service.ledger.tables import meta\n"
        "ledger = Ledger(sys.argv[1])\n"
        "for _ in range(25):\n"
        "    with ledger.write() as connection:\n"
        "        found = int(connection.scalar(sa.select(meta.c.value).where(meta.c.name == 'count')))\n"
        "        connection.execute(meta.update().where(meta.c.name == 'count').values(value=str(found + 1)))\n"
        "ledger.close()"
    )
    processes = [subprocess.Popen([sys.executable, "-W", "error", "-c", program, url]) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    with opened().read() as reader:
        assert reader.scalar(sa.select(tables.meta.c.value).where(tables.meta.c.name == "count")) == "75"


def test_a_writer_that_is_killed_leaves_nothing_and_nobody_waiting(opened: Callable[[], Ledger], url: str) -> None:
    program = (
        "import sys; import sqlalchemy as sa\n"
        "from creditgrid.service.ledger.ledger import Ledger\n"
        "from creditgrid.service.ledger import tables\n"
        "ledger = Ledger(sys.argv[1])\n"
        "for n in range(10**9):\n"
        "    with ledger.write() as connection:\n"
        "        tables.add_event(connection, 's', 'half', str(n))\n"
        "        print(n, flush=True)\n"
        "        tables.add_event(connection, 's', 'whole', str(n))\n"
    )
    opened().close()
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", program, url], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        last = [next(writer.stdout) for _ in range(20)][-1]
        writer.kill()
        writer.communicate()
        ledger = opened()
        with ledger.write() as connection:
            halves = connection.scalars(sa.select(tables.events.c.data).where(tables.events.c.type == "half")).all()
            wholes = connection.scalars(sa.select(tables.events.c.data).where(tables.events.c.type == "whole")).all()
            assert sorted(halves) == sorted(wholes)
            assert str(int(last) - 1) in wholes  # what was committed before is there
            connection.execute(tables.events.delete())


def test_a_ledger_is_made_once_by_whoever_is_first(url: str) -> None:
    program = "import sys; from creditgrid.service.ledger.ledger import Ledger; print(Ledger(sys.argv[1]).identity())"
    command = [sys.executable, "-c", program, url]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    identities = {process.communicate(timeout=60)[0] for process in processes}
    assert len(identities) == 1
    assert identities != {""}


def test_one_process_schedules(opened: Callable[[], Ledger], url: str) -> None:
    program = (
        "import sys; from creditgrid.service.ledger.ledger import Ledger; ledger = Ledger(sys.argv[1], lock=True)\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    owner = subprocess.Popen([sys.executable, "-c", program, url], stdin=pipe, stdout=pipe, text=True)
    assert owner.stdout is not None
    assert next(owner.stdout) == "locked\n"
    opened()  # reading needs no lock
    with pytest.raises(ConflictError, match=rf"process id {owner.pid}.*CREDITGRID_DATABASE_URL"):
        Ledger(url, lock=True)
    owner.kill()
    owner.communicate()
    third = Ledger(url, lock=True)
    with third.write() as connection:
        add_sweep(connection, "s")
    third.close()
    Ledger(url, lock=True).close()


def test_text_that_nobody_checked_fits(ledger: Ledger) -> None:
    with ledger.write() as connection:
        add_sweep(connection, "s", name="a\0b")
        add_call(connection, error="\0", traceback="File 'caf\udce9\0.py': π")
        assert connection.execute(sa.select(tables.calls.c.error, tables.calls.c.traceback)).one() == (
            "\\x00",
            "File 'caf\\udce9\\x00.py': π",
        )
        assert connection.scalar(sa.select(tables.sweeps.c.id).where(tables.sweeps.c.id == "\0")) is None
        assert connection.scalar(sa.select(tables.sweeps.c.name)) in ("a\0b", "a\N{REPLACEMENT CHARACTER}b")


def test_ids_from_the_future_are_compared(ledger: Ledger) -> None:
    with ledger.write() as connection:
        add_cell(connection, "s", 0, "k", None)
        tables.add_event(connection, "s", "t", "{}")
        assert connection.scalar(sa.select(tables.events.c.id).where(tables.events.c.id > 2**63 - 1)) is None
        assert connection.scalar(sa.select(tables.cells.c.idx).where(tables.cells.c.idx > 10**18)) is None


def test_many_rows_are_inserted_as_they_are(ledger: Ledger) -> None:
    rows = [
        {
            **tables.task_row(f"k{n}", "k", n, '{"a": "%s, {π}\\"}'),
            "bytes": None if n % 2 else 2**40 + n,
            "diverged": n % 3 == 0,
        }
        for n in range(2500)
    ]
    with ledger.write() as connection:
        tables.insert_many(connection, tables.tasks, rows)
        tables.insert_many(connection, tables.tasks, [])
        columns = [tables.tasks.c[name] for name in rows[0]]
        found = connection.execute(sa.select(*columns).order_by(tables.tasks.c.call)).all()
    assert [row._asdict() for row in found] == rows
    with pytest.raises(sa.exc.IntegrityError), ledger.write() as connection:
        tables.insert_many(connection, tables.tasks, rows[:1])


# -- calls ---------------------------------------------------------------------------------------------------------


def test_a_call_takes_legal_steps_alone(ledger: Ledger) -> None:
    for before, after in itertools.product(State, State):
        with ledger.write() as connection:
            call, other = add_call(connection, before), add_call(connection, before)
            legal = after in TRANSITIONS[before]
            assert tables.move_call(connection, call, after, host="h") is legal
            row = connection.execute(sa.select(tables.calls).where(tables.calls.c.id == call)).one()
            assert (row.state, row.host) == ((after, "h") if legal else (before, None))
            assert connection.scalar(sa.select(tables.calls.c.state).where(tables.calls.c.id == other)) == before
            assert tables.move_call(connection, 10**6, after) is False


def test_ready_sweeps_come_by_urgency_then_age(ledger: Ledger) -> None:
    with ledger.write() as connection:
        for sweep, priority in {"first": 0, "second": 0, "urgent": 5, "idle": -5, "paused": 9, "nothing": 9}.items():
            add_sweep(connection, sweep, priority=priority, paused=sweep == "paused")
            add_call(connection, State.SUCCEEDED if sweep == "nothing" else State.PENDING, sweep=sweep)
        order = [("urgent", 5), ("first", 0), ("second", 0), ("idle", -5)]
        assert list(tables.ready_sweeps(connection, 100.0)) == order
        for state in FINISHED:
            connection.execute(tables.sweeps.update().where(tables.sweeps.c.id == "urgent").values(state=state))
            assert list(tables.ready_sweeps(connection, 100.0)) == order[1:]


def test_ready_calls_are_pending_and_due(ledger: Ledger) -> None:
    with ledger.write() as connection:
        add_sweep(connection, "s")
        add_sweep(connection, "another")
        first, second = add_call(connection), add_call(connection)
        later = add_call(connection, not_before=2000.0)
        add_call(connection, waiting=1)
        add_call(connection, sweep="another")
        for state in State:
            if state is not State.PENDING:
                add_call(connection, state)

        def ready(now: float, limit: int = 50) -> list[int]:
            return [row.id for row in tables.ready_calls(connection, "s", now, limit)]

        assert ready(1500.0) == [first, second]
        assert ready(1500.0, 1) == [first]
        assert ready(2000.0) == [first, second, later]
        # A clock that was set back keeps nobody waiting longer than any pause is.
        assert ready(2000.0 - tables.LONGEST_PAUSE_S - 1.0) == [first, second, later]


def test_a_call_waits_until_all_it_stands_on_has_ended(ledger: Ledger) -> None:
    with ledger.write() as connection:
        add_sweep(connection, "s")
        owner, call, free = add_call(connection, State.RUNNING), add_call(connection), add_call(connection)
        for key in ("one", "two", "three"):
            add_task(connection, key, owner)
            connection.execute(tables.waits.insert().values(call=call, key=key))
        tables.recount(connection, ["one", "two", "three"])

        def ready() -> list[int]:
            return [row.id for row in tables.ready_calls(connection, "s", 1.0, 9)]

        assert ready() == [free]
        tables.settle_tasks(connection, owner, State.FAILED, ["one"])
        tables.settle_tasks(connection, owner, State.SUCCEEDED, ["two"])
        assert ready() == [free]
        assert connection.scalar(sa.select(tables.calls.c.waiting).where(tables.calls.c.id == call)) == 1
        tables.settle_tasks(connection, owner, State.SUCCEEDED)
        assert ready() == [call, free]


def test_calls_belong_to_the_most_urgent_sweep_that_runs(ledger: Ledger) -> None:
    with ledger.write() as connection:
        add_sweep(connection, "old", priority=0)
        add_sweep(connection, "new", priority=0)
        add_sweep(connection, "urgent", priority=3)
        shared, running = add_call(connection, sweep="new"), add_call(connection, State.RUNNING, sweep="new")
        ended = add_call(connection, State.SUCCEEDED, sweep="new")
        alone = add_call(connection, sweep="new")
        add_cell(connection, "new", 1, "c", alone)
        for sweep in ("old", "new", "urgent"):
            add_cell(connection, sweep, 0, "a", shared)
            add_stage(connection, sweep, "b", running)
            add_stage(connection, sweep, "d", ended, State.SUCCEEDED)

        def owners() -> list[str]:
            return list(connection.scalars(sa.select(tables.calls.c.sweep).order_by(tables.calls.c.id)))

        tables.claim(connection, "new")
        assert owners() == ["new", "new", "new", "new"]
        tables.claim(connection, "old")  # as urgent, and older
        assert owners() == ["old", "old", "new", "new"]
        tables.claim(connection, "new")
        assert owners() == ["old", "old", "new", "new"]
        tables.claim(connection, "urgent")
        assert owners() == ["urgent", "urgent", "new", "new"]
        connection.execute(tables.sweeps.update().where(tables.sweeps.c.id == "urgent").values(paused=True))
        tables.hand_over(connection, "urgent")
        assert owners() == ["old", "old", "new", "new"]
        connection.execute(tables.sweeps.update().where(tables.sweeps.c.id == "old").values(state=State.CANCELLED))
        tables.hand_over(connection, "old")
        assert owners() == ["new", "new", "new", "new"]


def test_a_call_is_split(ledger: Ledger) -> None:
    keys = [f"k{n}" for n in range(CHUNK + 7)]
    with ledger.write() as connection:
        call = add_call(connection, attempt=3, crashes=2, size=len(keys) + 1)
        for idx, key in enumerate(keys):
            add_task(connection, key, call)
            add_cell(connection, "s", idx, key, call)
        add_task(connection, "ended", call, State.SUCCEEDED)
        connection.execute(tables.waits.insert().values(call=call, key="base"))
        made = tables.split_call(connection, call, [keys[1 : CHUNK + 5], keys[CHUNK + 5 :]])
        rows = {row.id: row for row in connection.execute(sa.select(tables.calls))}
        assert [rows[number].size for number in (call, *made)] == [1, CHUNK + 4, 2]
        assert {(row.sweep, row.attempt, row.crashes, row.state) for row in rows.values()} == {("s", 3, 2, "pending")}
        for table in (tables.tasks, tables.cells):
            owner = {row.key: row.call for row in connection.execute(sa.select(table.c.key, table.c.call))}
            assert owner.pop("ended", call) == call
            assert owner == {key: call if n < 1 else made[n >= CHUNK + 5] for n, key in enumerate(keys)}
        waiting = connection.scalars(sa.select(tables.waits.c.call).where(tables.waits.c.key == "base"))
        assert sorted(waiting) == sorted((call, *made))


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
        assert [row.id for row in tables.open_calls(connection, "s")] == [own, shared]
        assert tables.open_calls(connection, "unknown") == []


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
        tables.settle_tasks(connection, call, State.SUCCEEDED)
        done, pending, skipped = State.SUCCEEDED, State.PENDING, State.SKIPPED
        assert states(connection, tables.tasks) == {"a": done, "b": done, "c": pending, "skipped": skipped}
        assert states(connection, tables.cells) == {"a": done, "c": pending}
        assert states(connection, tables.stages) == {"b": done}
        ended = connection.scalar(
            sa.select(sa.func.count()).where(tables.cells.c.key == "a", tables.cells.c.state == done)
        )
        assert ended == 2
        tables.settle_tasks(connection, call, State.FAILED)  # finished is final
        assert states(connection, tables.tasks)["a"] == done


def test_some_tasks_of_a_call_end_before_the_others(ledger: Ledger) -> None:
    keys = [f"k{n}" for n in range(2 * CHUNK + 3)]
    with ledger.write() as connection:
        call = add_call(connection)
        connection.execute(tables.tasks.insert(), [tables.task_row(key, "k", call, "{}") for key in keys])
        tables.settle_tasks(connection, call, State.SKIPPED, keys[1:])
        assert Counter(states(connection, tables.tasks).values()) == {State.SKIPPED: len(keys) - 1, State.PENDING: 1}
        tables.settle_tasks(connection, call, State.SKIPPED, [])
        assert states(connection, tables.tasks)["k0"] == State.PENDING


def test_only_open_sweeps_need_a_call(ledger: Ledger) -> None:
    with ledger.write() as connection:
        call = add_call(connection)
        for sweep in ("by cell", "by stage", "not"):
            add_sweep(connection, sweep)
        add_cell(connection, "by cell", 0, "a", call)
        add_cell(connection, "by cell", 1, "b", call)
        add_stage(connection, "by stage", "a", call)
        for state in State:
            connection.execute(tables.sweeps.update().values(state=state))
            assert tables.sweeps_of(connection, call) == (["by cell", "by stage"] if state in OPEN else [])


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
        found = tables.count_cells(connection, "s")
        assert sum(found.values()) == len(cells)
        assert found == dict(wanted)

    crash_after(ledger, check)  # nothing is left for the next example


# -- events --------------------------------------------------------------------------------------------------------


def test_event_ids_grow_and_are_never_used_again(opened: Callable[[], Ledger]) -> None:
    first = opened()
    for n in range(3):
        with first.write() as connection:
            tables.add_event(connection, "s", "t", f'{{"n":{n}}}')
    with first.write() as connection:
        ids = list(connection.scalars(sa.select(tables.events.c.id).order_by(tables.events.c.id)))
        connection.execute(tables.events.delete().where(tables.events.c.id == ids[-1]))
    first.close()
    with opened().write() as connection:
        tables.add_event(connection, "s", "t", "{}")
        newest = connection.scalar(sa.select(sa.func.max(tables.events.c.id)))
    assert ids == sorted(ids)
    assert newest is not None
    assert newest > ids[-1]


def test_large_artifacts_fit(ledger: Ledger) -> None:
    with ledger.write() as connection:
        add_task(connection, "k", 1)
        connection.execute(tables.tasks.update().values(bytes=2**40))
        assert connection.scalar(sa.select(tables.tasks.c.bytes)) == 2**40


def test_keys_come_in_pieces_that_fit_a_statement() -> None:
    keys = [str(n) for n in range(2 * CHUNK + 1)]
    pieces = list(tables.chunks(keys))
    assert [key for piece in pieces for key in piece] == keys
    assert max(map(len, pieces)) == CHUNK
    assert list(tables.chunks([])) == []


def test_every_state_is_counted_among_open_or_finished() -> None:
    assert set(OPEN) | set(FINISHED) == set(State)
