"""What differs between the databases that a ledger may live in: SQLite and PostgreSQL.

Both give the ledger the same: a reader sees one moment, whatever is written meanwhile; writers take turns, also those
of other processes, and each sees what the one before it wrote; what is committed is on the disk.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from creditgrid.core.errors import CreditGridError

BUSY_S = 60
"""A writer waits this long for its turn."""
POSTGRES: Mapping[str, str | int] = {
    "application_name": "creditgrid",
    "connect_timeout": 10,
    # A server that has vanished is noticed in a minute, not in hours.
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
"""How a PostgreSQL server is connected to, where the URL does not say otherwise."""
POOL: Mapping[str, int] = {"pool_size": 8, "max_overflow": 56}
"""Connections: more than requests are answered at a time, so that the scheduler never waits for one."""
WRITERS_TURN = 0x63726564_67726964
"""The advisory lock that a writing transaction holds (the letters of "credgrid")."""
CANNOT_WRITE_HERE = "25006"  # read_only_sql_transaction: a server that has become, or still is, another one's standby
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Prose(sa.types.TypeDecorator[str]):
    """Text that nobody checked, such as a traceback: what a database may refuse is written as an escape."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002
        """Escape NUL, and the halves of characters that Python puts for bytes it cannot decode."""
        return value and value.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


def address(url: str | sa.URL) -> sa.URL:
    """The URL of a ledger, with its driver.

    Raises:
        ValueError: for anything but a file of SQLite or a PostgreSQL server. The message does not repeat the URL, which
            may hold a password.
    """
    wanted = "give postgresql://user:password@host/database or sqlite:////path/to/ledger.sqlite"
    try:
        found = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise ValueError(f"is not a database URL: {wanted}") from None
    if found.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return found.set(drivername="postgresql+psycopg")
    if found.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise ValueError(f"{found.drivername} is not a database that a ledger can live in: {wanted}")
    if found.database in (None, "", ":memory:") or found.query or found.host:
        raise ValueError("a ledger in SQLite is a file: give sqlite:////path/to/ledger.sqlite, without options")
    return found


def connect(url: sa.URL) -> sa.Engine:
    """An engine whose transactions are as this module says; no connection is made yet.

    Raises:
        CreditGridError: the driver is not installed.
    """
    if url.get_backend_name() == "sqlite":
        engine = sa.create_engine(url, pool_pre_ping=True, **POOL)
        sa.event.listen(engine, "connect", _configure_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    options = {name: value for name, value in POSTGRES.items() if name not in url.query}
    try:
        engine = sa.create_engine(url, pool_pre_ping=True, connect_args=options, **POOL)
    except ImportError as error:
        raise CreditGridError(
            f"a ledger in PostgreSQL needs the package psycopg ({error}): pip install 'psycopg[binary]'"
        ) from error
    sa.event.listen(engine, "connect", _configure_postgresql)
    sa.event.listen(engine, "begin", _begin_postgresql)
    return engine


def file_of(engine: sa.Engine) -> Path | None:
    """The file that a SQLite database lives in; None for a server."""
    if engine.dialect.name != "sqlite":
        return None
    assert engine.url.database is not None
    return Path(engine.url.database).absolute()


def name_of(engine: sa.Engine) -> str:
    """The database as a person may be shown it: without a password."""
    return str(file_of(engine) or engine.url.set(drivername="postgresql", query={}).render_as_string())


def for_writing(connection: sa.Connection) -> None:
    """Make the connection's next transaction a writer's."""
    connection.execution_options(writes=True)


def for_reading(connection: sa.Connection) -> None:
    """Make the connection's next transaction see one moment. SQLite's do so by themselves."""
    if connection.dialect.name == "postgresql":
        connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


@contextmanager
def trouble() -> Iterator[None]:
    """Tell everything that keeps the database from being used for a while as ``sa.exc.OperationalError``.

    That is: it cannot be reached, the connection was lost, the disk is full, the file or the server can only be read,
    or another writer did not end in time. The transaction did not happen, but for one case: a connection that is lost
    while the server answers a commit leaves open whether it did.
    """
    try:
        yield
    except sa.exc.OperationalError:
        raise
    except sa.exc.TimeoutError as error:  # no connection of the pool became free
        raise sa.exc.OperationalError(None, None, error) from error
    except sa.exc.DBAPIError as error:
        refused = getattr(error.orig, "sqlstate", None) == CANNOT_WRITE_HERE
        lost = error.connection_invalidated or isinstance(error, sa.exc.InterfaceError)
        if not (lost or refused):
            raise
        raise sa.exc.OperationalError(error.statement, error.params, error.orig or error) from error


def is_damage(error: sa.exc.DBAPIError) -> bool:
    """Whether SQLite says that the file is broken, or is no database."""
    return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in DAMAGED


def reason(error: BaseException) -> str:
    """What went wrong, in a line that holds neither the statement nor a password."""
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig is not None else error
    return " ".join(str(cause).split()) or type(cause).__name__


def insert_rows(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert many rows that all have the columns of the first, the fast way of each driver.

    SQLite's takes parameters by position: the rows go to it as they are, which costs a fifth of SQLAlchemy's own way of
    checking each row's names. PostgreSQL is given one array a column, and answers once, not for each row.
    """
    names = list(rows[0])
    if connection.dialect.name == "sqlite":
        statement = table.insert().compile(dialect=connection.dialect, column_keys=names)
        assert statement.positiontup is not None
        values = [tuple(row[name] for name in statement.positiontup) for row in rows]
        connection.exec_driver_sql(str(statement), values)
        return
    arrays = [sa.bindparam(name, [row[name] for row in rows], sa.ARRAY(table.c[name].type)) for name in names]
    columns = sa.func.unnest(*arrays).table_valued(*names).render_derived()
    connection.execute(table.insert().from_select(names, sa.select(columns), include_defaults=False))


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say so, see _begin_sqlite
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={BUSY_S * 1000}", "temp_store=MEMORY"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer takes the lock at once: one that upgrades later can fail half-way.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _configure_postgresql(connection: Any, _record: Any) -> None:
    connection.adapters.register_dumper(str, _text_without_nul())
    # The server's own keep-alive: what a client held whose machine has gone is free again after a minute.
    settings = f"SET lock_timeout = '{BUSY_S}s'; SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; "
    connection.execute(settings + "SET tcp_keepalives_count = 3")
    connection.commit()


def _begin_postgresql(connection: sa.Connection) -> None:
    # Statements see what was committed before they began (READ COMMITTED), and after this one nobody else commits.
    if connection.get_execution_options().get("writes", False):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS_TURN})")


@functools.cache
def _text_without_nul() -> type:
    """Text as PostgreSQL takes it: it has no NUL character, which paths of requests and names of sweeps may hold."""
    from psycopg.types.string import StrDumper

    class TextDumper(StrDumper):
        def dump(self, obj: str) -> Any:
            return super().dump(obj.replace("\0", "\N{REPLACEMENT CHARACTER}"))

    return TextDumper
