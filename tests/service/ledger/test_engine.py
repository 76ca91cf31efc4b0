"""Which databases can hold a ledger, and which errors their outages raise."""

from __future__ import annotations

import builtins
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from postgresql import Database, fresh_database
from pydantic import SecretStr, ValidationError

from creditgrid.core.errors import ConflictError, CreditGridError
from creditgrid.service.ledger import engine, lock, tables
from creditgrid.service.ledger.events import emit_event
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.settings import Settings

SECRET = "hunter2-hunter2"


def add(ledger: Ledger, text: str = "{}") -> None:
    with ledger.write() as connection:
        emit_event(connection, "s", "t", text)


def count(ledger: Ledger) -> int | None:
    with ledger.read() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(tables.events))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    found = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    yield found
    found.close()


@pytest.fixture
def server() -> Iterator[Database]:
    with fresh_database() as found:
        yield found


@pytest.fixture
def remote(server: Database) -> Iterator[Ledger]:
    found = Ledger(server.url)
    yield found
    found.close()


# -- URLs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_postgresql_has_several_schemes(scheme: str) -> None:
    found = engine.parse_url(f"{scheme}://u:{SECRET}@h:5/d?sslmode=require")
    assert found.render_as_string(hide_password=False) == f"postgresql+psycopg://u:{SECRET}@h:5/d?sslmode=require"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "not a database URL"),
        (f"postgresql//u:{SECRET}@h/d", "not a database URL"),
        (f"postgresql://u:{SECRET}@h:port/d", "not a database URL"),
        (f"mysql://u:{SECRET}@h/d", "mysql is not a database that"),
        (f"postgresql+asyncpg://u:{SECRET}@h/d", "postgresql://user"),
        ("sqlite://", "is a file"),
        ("sqlite:///:memory:", "is a file"),
        ("sqlite:///file:x?mode=ro&uri=true", "without options"),
    ],
)
def test_urls_that_are_refused_and_not_shown(url: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        Settings(database_url=SecretStr(url))
    assert SECRET not in str(caught.value)


def test_a_password_is_not_shown() -> None:
    settings = Settings(database_url=SecretStr(f"postgres://u:{SECRET}@h/d"))
    assert SECRET not in repr(settings)
    with pytest.raises(
        CreditGridError, match=r"postgresql://u:\*\*\*@127\.0\.0\.1:1/d cannot be used: .*refused"
    ) as caught:
        Ledger(f"postgresql://u:{SECRET}@127.0.0.1:1/d")
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_driver_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    known = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "psycopg":
            raise ModuleNotFoundError("No module named 'psycopg'")
        return known(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CreditGridError, match=r"pip install 'psycopg\[binary\]'"):
        Ledger("postgresql://h/d")


def test_a_file_name_may_have_any_characters(tmp_path: Path) -> None:
    folder = tmp_path / "a?b=c%20#d é"
    folder.mkdir()
    Ledger(sa.URL.create("sqlite", database=str(folder / "ledger.sqlite"))).close()
    assert (folder / "ledger.sqlite").exists()


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CreditGridError, match=r"nowhere.*cannot be used: unable to open"):
        Ledger(f"sqlite:///{tmp_path / 'nowhere/ledger.sqlite'}")


# -- outages -------------------------------------------------------------------------------------------------------


def test_a_full_disk(ledger: Ledger) -> None:
    add(ledger)
    with ledger.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    for _ in range(3):
        with pytest.raises(sa.exc.OperationalError, match="full"):
            add(ledger, "x" * 100_000)
    assert count(ledger) == 1
    with ledger.write() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    add(ledger, "x" * 100_000)
    assert count(ledger) == 2


def test_a_read_only_file(ledger: Ledger) -> None:
    with ledger.read() as connection:
        connection.exec_driver_sql("PRAGMA query_only = on")
    with pytest.raises(sa.exc.OperationalError, match="readonly"):
        add(ledger)
    assert count(ledger) == 0


def test_all_connections_of_the_pool_are_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> None:
        raise sa.exc.TimeoutError("QueuePool limit reached")

    database = engine.create_engine(engine.parse_url(f"sqlite:///{tmp_path / 'ledger.sqlite'}"))
    monkeypatch.setattr(database.pool, "connect", busy)
    for transaction in (engine.read_transaction, engine.write_transaction):
        with pytest.raises(sa.exc.OperationalError, match="QueuePool"), transaction(database):
            pass


def test_an_error_in_a_statement_is_no_outage(ledger: Ledger, remote: Ledger) -> None:
    for found in (ledger, remote):
        with pytest.raises(sa.exc.IntegrityError), found.write() as connection:
            connection.execute(tables.meta.insert(), [{"name": "n", "value": "1"}, {"name": "n", "value": "2"}])
    with pytest.raises(sa.exc.ProgrammingError), remote.read() as connection:
        connection.exec_driver_sql("SELECT nonsense")


def test_connections_that_are_cut(remote: Ledger, server: Database) -> None:
    add(remote)
    server.cut()
    add(remote)  # the pool tests its connections before it hands them out
    assert count(remote) == 2

    def cut_while_writing() -> None:
        with remote.write() as connection:
            emit_event(connection, "s", "t", "m")
            server.cut()
            emit_event(connection, "s", "t", "m")

    def cut_before_the_commit() -> None:
        with remote.write() as connection:
            emit_event(connection, "s", "t", "m")
            server.cut()

    def cut_while_reading() -> None:
        with remote.read() as connection:
            server.cut()
            connection.scalar(sa.select(tables.meta.c.value))

    for step in (cut_while_writing, cut_before_the_commit, cut_while_reading):
        with pytest.raises(sa.exc.OperationalError):
            step()
        assert count(remote) == 2


def test_an_unreachable_server(remote: Ledger, server: Database) -> None:
    add(remote)
    with server.away():
        for _ in range(2):
            with pytest.raises(sa.exc.OperationalError):
                add(remote)
            with pytest.raises(sa.exc.OperationalError):
                count(remote)
        with pytest.raises(CreditGridError, match="cannot be used"):
            Ledger(server.url)
    add(remote)
    assert count(remote) == 2


def test_a_read_only_server(remote: Ledger, server: Database) -> None:
    with server.read_only():
        with pytest.raises(sa.exc.OperationalError, match="read-only"):
            add(remote)
        assert count(remote) == 0
    add(remote)


# -- the lock ------------------------------------------------------------------------------------------------------


@pytest.fixture
def locked(server: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    monkeypatch.setattr(lock, "ACQUIRE_TIMEOUT_S", 0.2)
    found = Ledger(server.url, lock=True)
    yield found
    found.close()


def test_a_lock_that_was_lost_is_taken_again(locked: Ledger, server: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "CHECK_INTERVAL_S", 0.0)
    server.cut()
    add(locked)
    with pytest.raises(ConflictError, match=f"in use by the service with process id {os.getpid()} on"):
        Ledger(server.url, lock=True)


def test_a_service_that_was_replaced_writes_nothing_more(
    locked: Ledger, server: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(locked)
    server.cut()
    other = Ledger(server.url, lock=True)  # the server has released the lock of the first
    add(other)
    with pytest.raises(ConflictError, match="has taken over the ledger"):
        add(locked)
    monkeypatch.setattr(lock, "CHECK_INTERVAL_S", 0.0)
    with pytest.raises(ConflictError, match="has taken over the ledger"):
        add(locked)
    assert count(locked) == 2
    add(other)
    other.close()


def test_a_locked_ledger_outlives_an_outage_of_its_server(locked: Ledger, server: Database) -> None:
    with server.away():
        started = time.monotonic()
        with pytest.raises(sa.exc.OperationalError):
            add(locked)
        assert time.monotonic() - started < 30
    add(locked)
