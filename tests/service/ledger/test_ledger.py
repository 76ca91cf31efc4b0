"""The ledger's contract: transactions, locks, ids and text are the same in every database that can hold a ledger."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from ledger_rows import add_call, add_cell, add_sweep, add_task, new_task, plain_task

from creditgrid.core.errors import ConflictError
from creditgrid.service.ledger import engine, tables
from creditgrid.service.ledger.events import emit_event
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.tables import CHUNK


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
        emit_event(connection, "s", "t", "m")

    crash_after(ledger, half)
    with ledger.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(tables.sweeps)) == 0
        assert connection.scalar(sa.select(sa.func.count()).select_from(tables.events)) == 0
    with ledger.write() as connection:  # the next transaction is not blocked
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


def test_writers_of_several_threads_run_one_after_the_other(ledger: Ledger) -> None:
    with ledger.write() as connection:
        connection.execute(tables.meta.insert().values(name="count", value="0"))
    errors: list[BaseException] = []

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
            errors.append(error)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with ledger.read() as connection:
        assert connection.scalar(sa.select(tables.meta.c.value).where(tables.meta.c.name == "count")) == "40"


def test_a_ledger_keeps_its_identity(opened: Callable[[], Ledger], tmp_path: Path) -> None:
    identity = opened().identity()
    assert identity == opened().identity() == opened().identity()
    other = Ledger(f"sqlite:///{tmp_path / 'other.sqlite'}")
    assert other.identity() != identity
    other.close()


def test_a_reader_sees_one_snapshot(ledger: Ledger) -> None:
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


def test_writers_of_several_processes_run_one_after_the_other(opened: Callable[[], Ledger], url: str) -> None:
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


def test_a_killed_writer_leaves_nothing_and_blocks_nobody(opened: Callable[[], Ledger], url: str) -> None:
    program = (
        "import sys; from creditgrid.service.ledger.ledger import Ledger\n"
        "from creditgrid.service.ledger.events import emit_event\n"
        "ledger = Ledger(sys.argv[1])\n"
        "for n in range(10**9):\n"
        "    with ledger.write() as connection:\n"
        "        emit_event(connection, 's', 'half', str(n))\n"
        "        print(n, flush=True)\n"
        "        emit_event(connection, 's', 'whole', str(n))\n"
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
            assert f'{{"message":"{int(last) - 1}"}}' in wholes  # what was committed before is there
            connection.execute(tables.events.delete())


def test_processes_that_open_a_new_ledger_create_it_once(url: str) -> None:
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


def test_any_text_can_be_stored(ledger: Ledger) -> None:
    with ledger.write() as connection:
        add_sweep(connection, "s", name="a\0b")
        add_call(connection, error="\0", traceback="File 'caf\udce9\0.py': π")
        assert connection.execute(sa.select(tables.calls.c.error, tables.calls.c.traceback)).one() == (
            "\\x00",
            "File 'caf\\udce9\\x00.py': π",
        )
        assert connection.scalar(sa.select(tables.sweeps.c.id).where(tables.sweeps.c.id == "\0")) is None
        assert connection.scalar(sa.select(tables.sweeps.c.name)) in ("a\0b", "a\N{REPLACEMENT CHARACTER}b")


def test_large_ids_can_be_compared(ledger: Ledger) -> None:
    with ledger.write() as connection:
        add_cell(connection, "s", 0, "k", None)
        emit_event(connection, "s", "t", "m")
        assert connection.scalar(sa.select(tables.events.c.id).where(tables.events.c.id > 2**63 - 1)) is None
        assert connection.scalar(sa.select(tables.cells.c.idx).where(tables.cells.c.idx > 10**18)) is None


def test_many_rows_are_inserted_as_they_are(ledger: Ledger) -> None:
    rows = [
        {
            **new_task(plain_task(f"k{n}"), n),
            "params": '{"a": "%s, {π}\\"}',
            "bytes": None if n % 2 else 2**40 + n,
            "diverged": n % 3 == 0,
        }
        for n in range(2500)
    ]
    with ledger.write() as connection:
        engine.insert_many(connection, tables.tasks, rows)
        engine.insert_many(connection, tables.tasks, [])
        columns = [tables.tasks.c[name] for name in rows[0]]
        found = connection.execute(sa.select(*columns).order_by(tables.tasks.c.call)).all()
    assert [row._asdict() for row in found] == rows
    with pytest.raises(sa.exc.IntegrityError), ledger.write() as connection:
        engine.insert_many(connection, tables.tasks, rows[:1])


# -- events --------------------------------------------------------------------------------------------------------


def test_event_ids_grow_and_are_never_used_again(opened: Callable[[], Ledger]) -> None:
    first = opened()
    for n in range(3):
        with first.write() as connection:
            emit_event(connection, "s", "t", "m", n=n)
    with first.write() as connection:
        ids = list(connection.scalars(sa.select(tables.events.c.id).order_by(tables.events.c.id)))
        connection.execute(tables.events.delete().where(tables.events.c.id == ids[-1]))
    first.close()
    with opened().write() as connection:
        emit_event(connection, "s", "t", "m")
        newest = connection.scalar(sa.select(sa.func.max(tables.events.c.id)))
    assert ids == sorted(ids)
    assert newest is not None
    assert newest > ids[-1]


def test_large_artifacts_fit(ledger: Ledger) -> None:
    with ledger.write() as connection:
        add_task(connection, "k", 1)
        connection.execute(tables.tasks.update().values(bytes=2**40))
        assert connection.scalar(sa.select(tables.tasks.c.bytes)) == 2**40


def test_chunks_of_keys_fit_a_statement() -> None:
    keys = [str(n) for n in range(2 * CHUNK + 1)]
    pieces = list(tables.chunks(keys))
    assert [key for piece in pieces for key in piece] == keys
    assert max(map(len, pieces)) == CHUNK
    assert list(tables.chunks([])) == []
