"""What differs between the two databases that can hold a ledger: SQLite and PostgreSQL.

Both give the ledger the same guarantees: a reader sees one snapshot. Writers of all processes run one after the other,
and each sees what the writers before it committed. What is committed is on the disk.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles

from creditgrid.core.errors import CreditGridError

LOCK_TIMEOUT_S = 60
"""How long a writer waits for the writers before it."""
POSTGRESQL_OPTIONS: Mapping[str, str | int] = {
    "application_name": "creditgrid",
    "connect_timeout": 10,
    # A server that does not answer is noticed within a minute, not hours later.
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
"""Options of a connection to a PostgreSQL server; those in the URL come first."""
POOL_OPTIONS: Mapping[str, int] = {"pool_size": 8, "max_overflow": 56}
"""More connections than the service answers requests at a time, so that the scheduler never waits for one."""
WRITER_CACHE_KIB, READER_CACHE_KIB = 16 * 1024, 2 * 1024
"""SQLite's cache of pages. Keys are random, so a plan touches pages all over their index."""
PAGE_BYTES = 8192
"""Of a new SQLite file. Each insert writes some page of the index of keys: fewer and larger pages cost less."""
WAL_PAGES = 4096
"""After so many pages SQLite brings its log to the file: a page that was written often is brought there once."""
WRITE_LOCK = 0x63726564_67726964
"""The advisory lock that a writing transaction holds (the letters of "credgrid")."""
READ_ONLY_SQL_TRANSACTION = "25006"  # PostgreSQL's error code of a server that is the standby of another one
CORRUPTION = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class UncheckedText(sa.types.TypeDecorator[str]):
    """Text from outside, such as a traceback: characters that a database may refuse are written as escapes."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002
        """Escape NUL, and the surrogates that Python puts for bytes it cannot decode."""
        return value and value.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


class JsonText(sa.sql.functions.FunctionElement[str]):
    """A member of the JSON object in a column of text, as text: ``JsonText(column, name)``."""

    type = sa.String()
    inherit_cache = True


@compiles(JsonText, "sqlite")
def _json_text_in_sqlite(element: JsonText, compiler: Any, **options: Any) -> str:
    column, name = element.clauses
    return f"json_extract({compiler.process(column, **options)}, '$.' || {compiler.process(name, **options)})"


@compiles(JsonText, "postgresql")
def _json_text_in_postgresql(element: JsonText, compiler: Any, **options: Any) -> str:
    column, name = element.clauses
    return f"(CAST({compiler.process(column, **options)} AS JSON) ->> {compiler.process(name, **options)})"


def parse_url(url: str | sa.URL) -> sa.URL:
    """The URL of a ledger, with its driver.

    Raises:
        ValueError: the URL names neither a SQLite file nor a PostgreSQL server. The message does not repeat the URL,
            which may hold a password.
    """
    wanted = "give postgresql://user:password@host/database or sqlite:////path/to/ledger.sqlite"
    try:
        found = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise ValueError(f"is not a database URL: {wanted}") from None
    if found.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return found.set(drivername="postgresql+psycopg")
    if found.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise ValueError(f"{found.drivername} is not a database that can hold a ledger: {wanted}")
    if found.database in (None, "", ":memory:") or found.query or found.host:
        raise ValueError("a ledger in SQLite is a file: give sqlite:////path/to/ledger.sqlite, without options")
    return found


def create_engine(url: sa.URL) -> sa.Engine:
    """An engine for ``read_transaction`` and ``write_transaction``. It does not connect yet.

    Raises:
        CreditGridError: the driver is not installed.
    """
    if url.get_backend_name() == "sqlite":
        # The connection that was used last is used next: what it has cached is still valid.
        engine = sa.create_engine(url, pool_pre_ping=True, pool_use_lifo=True, **POOL_OPTIONS)
        sa.event.listen(engine, "connect", _configure_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    options = {name: value for name, value in POSTGRESQL_OPTIONS.items() if name not in url.query}
    try:
        engine = sa.create_engine(url, pool_pre_ping=True, connect_args=options, **POOL_OPTIONS)
    except ImportError as error:
        raise CreditGridError(
            f"a ledger in PostgreSQL needs the package psycopg ({error}): pip install 'psycopg[binary]'"
        ) from error
    sa.event.listen(engine, "connect", _configure_postgresql)
    sa.event.listen(engine, "begin", _begin_postgresql)
    return engine


def sqlite_file(engine: sa.Engine) -> Path | None:
    """The file of a SQLite database; None for a server."""
    if engine.dialect.name != "sqlite":
        return None
    assert engine.url.database is not None
    return Path(engine.url.database).absolute()


def display_name(engine: sa.Engine) -> str:
    """The name of the database for messages and logs: without a password."""
    return str(sqlite_file(engine) or engine.url.set(drivername="postgresql", query={}).render_as_string())


@contextmanager
def write_transaction(engine: sa.Engine, *, durable: bool = True) -> Iterator[sa.Connection]:
    """A transaction that may write. It starts when all writers before it, also those of other processes, have ended.

    Args:
        durable: whether it is on the disk when it has ended. If not, a power cut may undo it, with all that follows it,
            and the next durable transaction brings it to the disk.

    Raises:
        OperationalError: the database cannot be used for a while, see ``_translated_errors``.
    """
    with _translated_errors(), engine.connect() as connection:
        connection.execution_options(writes=True, durable=durable)
        with connection.begin():
            yield connection


@contextmanager
def read_transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that sees one snapshot.

    Raises:
        OperationalError: the database cannot be used for a while, see ``_translated_errors``.
    """
    with _translated_errors(), engine.connect() as connection:
        if connection.dialect.name == "postgresql":  # SQLite's transactions always do
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        with connection.begin():
            yield connection


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Raise ``sa.exc.OperationalError`` for everything that makes the database unusable for a while.

    That is: it cannot be reached, the connection was lost, the disk is full, the file or server is read-only, or the
    wait for another writer timed out. Nothing was committed, with one exception: when the connection is lost during a
    commit, nobody knows whether the server has committed.
    """
    try:
        yield
    except sa.exc.OperationalError:
        raise
    except sa.exc.TimeoutError as error:  # all connections of the pool are in use
        raise sa.exc.OperationalError(None, None, error) from error
    except sa.exc.DBAPIError as error:
        read_only = getattr(error.orig, "sqlstate", None) == READ_ONLY_SQL_TRANSACTION
        lost = error.connection_invalidated or isinstance(error, sa.exc.InterfaceError)
        if not (lost or read_only):
            raise
        raise sa.exc.OperationalError(error.statement, error.params, error.orig or error) from error


def is_corruption(error: sa.exc.DBAPIError) -> bool:
    """Whether SQLite reports that the file is corrupt, or not a database."""
    return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in CORRUPTION


def short_message(error: BaseException) -> str:
    """The error in one line, without the SQL statement and without a password."""
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig is not None else error
    return " ".join(str(cause).split()) or type(cause).__name__


def insert_many(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, which all have the columns of the first, see ``insert_tuples``."""
    if rows:
        names = list(rows[0])
        insert_tuples(connection, table, names, [tuple(row[name] for name in names) for row in rows])


def insert_tuples(
    connection: sa.Connection, table: sa.Table, names: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> None:
    """Insert rows, each with values for the columns ``names``, in the fastest way of each driver.

    SQLite's driver takes parameters by position. This takes a fifth of the time of SQLAlchemy, which checks the names
    of each row. PostgreSQL gets one array for each column, and answers once instead of once for each row.
    """
    if not rows:
        return
    if connection.dialect.name == "sqlite":
        marks = ", ".join("?" * len(names))
        connection.exec_driver_sql(f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({marks})", rows)  # noqa: S608
        return
    columns = zip(names, zip(*rows, strict=True), strict=True)
    arrays = [sa.bindparam(name, list(values), sa.ARRAY(table.c[name].type)) for name, values in columns]
    values = sa.func.unnest(*arrays).table_valued(*names).render_derived()
    connection.execute(table.insert().from_select(names, sa.select(values), include_defaults=False))


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # _begin_sqlite starts the transactions
    cursor = connection.cursor()
    timeout = f"busy_timeout={LOCK_TIMEOUT_S * 1000}"
    log = f"wal_autocheckpoint={WAL_PAGES}"
    size = f"page_size={PAGE_BYTES}"  # before anything is written
    for pragma in (size, "journal_mode=WAL", "synchronous=FULL", timeout, "temp_store=MEMORY", log):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer takes the lock at the start: a reader that becomes a writer later may fail in the middle.
    options = connection.get_execution_options()
    if not options.get("writes", False):
        connection.exec_driver_sql(f"PRAGMA cache_size={-READER_CACHE_KIB}")
        connection.exec_driver_sql("BEGIN")
        return
    connection.exec_driver_sql(f"PRAGMA cache_size={-WRITER_CACHE_KIB}")
    connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if options['durable'] else 'NORMAL'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _configure_postgresql(connection: Any, _record: Any) -> None:
    connection.adapters.register_dumper(str, _text_without_nul())
    # The keep-alive of the server's side: it frees the locks of a client whose machine is gone after a minute.
    connection.execute(
        f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'; "
        "SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3"
    )
    connection.commit()


def _begin_postgresql(connection: sa.Connection) -> None:
    # A statement sees what was committed before it started (READ COMMITTED); no other writer commits after this one.
    options = connection.get_execution_options()
    if options.get("writes", False):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITE_LOCK})")
        if not options["durable"]:
            connection.exec_driver_sql("SET LOCAL synchronous_commit = off")


@functools.cache
def _text_without_nul() -> type:
    """Replaces NUL, which PostgreSQL refuses in text. Paths of requests and names of sweeps may hold it."""
    from psycopg.types.string import StrDumper

    class TextDumper(StrDumper):
        def dump(self, obj: str) -> Any:
            return super().dump(obj.replace("\0", "\N{REPLACEMENT CHARACTER}"))

    return TextDumper
