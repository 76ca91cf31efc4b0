"""The ledger: sweeps, calls, tasks, cells and events in one SQL database, SQLite unless a URL says otherwise.

A *task* row stands for a key, once, whoever asked for it. A *call* is what one process computes in one go; what is open
takes its state from its call, so that a step of a call of ten thousand cells writes one row, and only the end of it
writes them all, in one statement. *stages* and *cells* say which sweep needs which task, and how that ended for it.
Nothing here rewrites what grows with a sweep.

This file holds tables and statements; ``scheduler`` alone decides on states, and ``views`` reads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from creditgrid.core.errors import CreditGridError
from creditgrid.core.states import OPEN, State, sources

SCHEMA_VERSION = 1
CHUNK = 500
"""Keys in one statement; SQLite takes at most some thousand parameters."""

metadata = sa.MetaData()

meta = sa.Table("meta", metadata, sa.Column("name", sa.String, primary_key=True), sa.Column("value", sa.String))

sweeps = sa.Table(
    "sweeps",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String, unique=True, nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("experiment", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False, index=True),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("cells", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("finished_at", sa.Float),
    sqlite_autoincrement=True,
)

idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("body", sa.String, nullable=False),
    sa.Column("sweep", sa.String, nullable=False),
)

calls = sa.Table(
    "calls",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("sweep", sa.String, nullable=False, index=True),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("not_before", sa.Float, nullable=False),
    sa.Column("batch", sa.Integer, index=True),  # the results batch that holds its rows, once one was begun
    sa.Column("seconds", sa.Float),
    sa.Column("host", sa.String),
    sa.Column("error", sa.Text),
    sa.Column("traceback", sa.Text),
    sa.Index("calls_ready", "state", "priority", "seq", "id"),
    sa.Index("calls_kind", "kind", "state"),
    sqlite_autoincrement=True,
)

waits = sa.Table(
    "waits",
    metadata,
    sa.Column("call", sa.Integer, primary_key=True),
    sa.Column("key", sa.String, primary_key=True),
    sa.Index("waits_key", "key"),
)

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("call", sa.Integer, nullable=False, index=True),
    sa.Column("payload", sa.Text, nullable=False),  # JSON: version, params, parents, group, source
    sa.Column("bytes", sa.BigInteger),
    sa.Column("diverged", sa.Boolean, nullable=False, default=False),
)

stages = sa.Table(
    "stages",
    metadata,
    sa.Column("sweep", sa.String, primary_key=True),
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("call", sa.Integer, index=True),
    sa.Column("state", sa.String, nullable=False),
)

cells = sa.Table(
    "cells",
    metadata,
    sa.Column("sweep", sa.String, primary_key=True),
    sa.Column("idx", sa.Integer, primary_key=True),
    sa.Column("key", sa.String, nullable=False),
    sa.Column("call", sa.Integer, index=True),
    sa.Column("state", sa.String, nullable=False),
    sa.Index("cells_count", "sweep", "state", "call"),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("sweep", sa.String, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("type", sa.String, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Index("events_sweep", "sweep", "id"),
    sqlite_autoincrement=True,
)


class Ledger:
    """The database; reads may come from any thread, writes are one at a time."""

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url, pool_pre_ping=True)
        self._writing = threading.RLock()
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _configure_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        metadata.create_all(self._engine)
        with self.write() as connection:
            found = connection.scalar(sa.select(meta.c.value).where(meta.c.name == "schema"))
            if found is None:
                connection.execute(meta.insert().values(name="schema", value=str(SCHEMA_VERSION)))
            elif int(found) != SCHEMA_VERSION:
                raise CreditGridError(
                    f"the ledger at {url} has schema {found} and this version works with {SCHEMA_VERSION}: "
                    "use the version that made it, or another data directory"
                )

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction; everything in it happens or nothing does."""
        with self._writing, self._engine.connect() as connection:
            connection.execution_options(writes=True)  # sets them in place
            with connection.begin():
                yield connection

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A consistent view for reading."""
        with self._engine.connect() as connection, connection.begin():
            yield connection

    def identity(self) -> str:
        """A name of this ledger, fixed when it was made: what marks its commits in the results table."""
        with self.write() as connection:
            found = connection.scalar(sa.select(meta.c.value).where(meta.c.name == "identity"))
            if found is None:
                found = f"{time.time_ns():x}"
                connection.execute(meta.insert().values(name="identity", value=found))
            return str(found)


def chunks(keys: Iterable[str]) -> Iterator[list[str]]:
    """The keys in pieces that fit one statement."""
    piece: list[str] = []
    for key in keys:
        piece.append(key)
        if len(piece) == CHUNK:
            yield piece
            piece = []
    if piece:
        yield piece


def insert_many(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows that all have the same columns.

    A sweep writes two rows a cell. Where the driver takes parameters by position the rows go to it as they are, which
    costs a fifth of SQLAlchemy's own way of checking each row's names.
    """
    if not rows:
        return
    names = list(rows[0])
    statement = table.insert().compile(dialect=connection.dialect, column_keys=names)
    if statement.positional and statement.positiontup is not None:
        values = [tuple(row[name] for name in statement.positiontup) for row in rows]
        connection.exec_driver_sql(str(statement), values)
    else:
        connection.execute(table.insert(), rows)


def ready_calls(connection: sa.Connection, now: float, limit: int) -> Sequence[sa.Row[Any]]:
    """Pending calls that wait for nothing any more, the most urgent first."""
    unfinished = (
        sa.select(waits.c.key)
        .join(tasks, tasks.c.key == waits.c.key)
        .where(waits.c.call == calls.c.id, tasks.c.state == State.PENDING)
    )
    query = (
        sa.select(calls)
        .where(calls.c.state == State.PENDING, calls.c.not_before <= now, ~unfinished.exists())
        .order_by(calls.c.priority.desc(), calls.c.seq, calls.c.id)
        .limit(limit)
    )
    return connection.execute(query).all()


def move_call(connection: sa.Connection, call: int, to: State, **values: Any) -> bool:
    """Move a call to another state if that is a legal step; returns whether it was."""
    query = calls.update().where(calls.c.id == call, calls.c.state.in_(sources(to))).values(state=to, **values)
    return connection.execute(query).rowcount == 1


def settle_tasks(connection: sa.Connection, call: int, to: State, keys: Iterable[str] | None = None) -> None:
    """End the open tasks of a call (all, or these), for every sweep that needs them."""
    pieces: Iterable[list[str] | None] = [None] if keys is None else chunks(keys)
    for piece in pieces:
        for table in (tasks, stages, cells):
            query = table.update().where(table.c.call == call, table.c.state == State.PENDING).values(state=to)
            connection.execute(query if piece is None else query.where(table.c.key.in_(piece)))


def sweeps_of(connection: sa.Connection, call: int) -> list[str]:
    """The open sweeps that need a task of this call."""
    needing = sa.union(
        sa.select(cells.c.sweep).where(cells.c.call == call), sa.select(stages.c.sweep).where(stages.c.call == call)
    ).subquery()
    query = sa.select(sweeps.c.id).where(sweeps.c.id.in_(sa.select(needing.c.sweep)), sweeps.c.state.in_(OPEN))
    return list(connection.scalars(query.order_by(sweeps.c.seq)))


def open_calls(connection: sa.Connection, sweep: str) -> Sequence[sa.Row[Any]]:
    """The calls that a sweep waits for, whichever sweep they were made for."""
    awaited = sa.union(
        *(
            sa.select(table.c.call).where(table.c.sweep == sweep, table.c.state == State.PENDING)
            for table in (cells, stages)
        )
    ).subquery()
    query = sa.select(calls).where(calls.c.id.in_(sa.select(awaited.c.call)), calls.c.state.in_(OPEN))
    return connection.execute(query.order_by(calls.c.id)).all()


def count_cells(connection: sa.Connection, sweep: str) -> dict[State, int]:
    """Cells by state; an open cell is at what its call is at. The counts add up to the sweep's cells."""
    grouped = (
        sa.select(cells.c.state, cells.c.call, sa.func.count().label("n"))
        .where(cells.c.sweep == sweep, cells.c.state == State.PENDING)
        .group_by(cells.c.state, cells.c.call)
        .subquery()
    )
    state = sa.func.coalesce(calls.c.state, State.PENDING)
    opened = (
        sa.select(state, sa.func.sum(grouped.c.n))
        .select_from(grouped.outerjoin(calls, calls.c.id == grouped.c.call))
        .group_by(state)
    )
    ended = (
        sa.select(cells.c.state, sa.func.count())
        .where(cells.c.sweep == sweep, cells.c.state != State.PENDING)
        .group_by(cells.c.state)
    )
    counts = {State(name): int(n) for name, n in connection.execute(ended)}
    for name, n in connection.execute(opened):
        # A call between its end and the commit of its rows is through, its cells are not: they count as running.
        at = State(name) if State(name) in OPEN else State.RUNNING
        counts[at] = counts.get(at, 0) + int(n)
    return counts


def add_event(connection: sa.Connection, sweep: str, kind: str, data: str) -> None:
    """Append an event."""
    connection.execute(events.insert().values(sweep=sweep, at=time.time(), type=kind, data=data))


def task_row(key: str, kind: str, call: int, payload: str) -> Mapping[str, Any]:
    """A new task."""
    return {"key": key, "kind": kind, "state": State.PENDING, "call": call, "payload": payload, "diverged": False}


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say so, see _begin_sqlite
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=60000", "temp_store=MEMORY"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer takes the lock at once: one that upgrades later can fail half-way.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
