"""The ledger's tables and statements: sweeps, calls, tasks, cells and events.

A *task* row stands for a key, once, whoever asked for it. A *call* is what one process computes in one go; what is open
takes its state from its call, so that a step of a call of ten thousand cells writes one row, and only the end of it
writes them all, in one statement. *stages* and *cells* say which sweep needs which task, and how that ended for it.
Nothing here rewrites what grows with a sweep.

A call belongs to one sweep, of those that need it: the most urgent open one that is not paused, if there is one.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from creditgrid.core.states import FINISHED, OPEN, WITHOUT_RESULT, State, sources
from creditgrid.core.task import Task
from creditgrid.service.ledger import engine

LONGEST_PAUSE_S = 600.0
"""Between two attempts of a call; up to here the pause doubles."""
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
    sa.Column("paused", sa.Boolean, nullable=False, default=False),
    sa.Column("spec", sa.Text, nullable=False),  # as it was submitted
    sa.Column("extensions", sa.Text),  # JSON: what was added to the spec since, in order
    sa.Column("cells", sa.Integer, nullable=False),
    sa.Column("stopped", sa.Text),  # why it was ended before it was through
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
    sa.Column("sweep", sa.String, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("waiting", sa.Integer, nullable=False, default=0),  # how many of its waits are open
    sa.Column("attempt", sa.Integer, nullable=False, default=1),
    sa.Column("crashes", sa.Integer, nullable=False, default=0),  # attempts that ended with their process
    sa.Column("losses", sa.Integer, nullable=False, default=0),  # attempts that are not held against it
    sa.Column("not_before", sa.Float, nullable=False, default=0.0),
    sa.Column("batch", sa.Integer, index=True),  # the results batch that holds its rows, once one was begun
    sa.Column("seconds", sa.Float),
    sa.Column("host", sa.String),
    sa.Column("error", engine.UncheckedText),
    sa.Column("traceback", engine.UncheckedText),
    sa.Index("calls_ready", "sweep", "state", "waiting", "id"),
    sa.Index("calls_open", "state"),
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
    sa.Column("blame", sa.String),  # of a skipped one: the task that failed
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
    sa.Column("idx", sa.BigInteger, primary_key=True),
    sa.Column("key", sa.String, nullable=False),
    sa.Column("call", sa.Integer, index=True),
    sa.Column("state", sa.String, nullable=False),
    sa.Index("cells_count", "sweep", "state", "call"),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("sweep", sa.String, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("type", sa.String, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Index("events_sweep", "sweep", "id"),
    sqlite_autoincrement=True,
)


# Statements that a call takes many of are built once: building one costs as much as running it.
_OF_CALL: sa.BindParameter[Any] = sa.bindparam("of_call")
_WAITING = (
    sa.select(sa.func.count())
    .select_from(waits.join(tasks, tasks.c.key == waits.c.key))
    .where(waits.c.call == calls.c.id, tasks.c.state == State.PENDING)
    .scalar_subquery()
)
"""How many tasks a call waits for."""
_NEEDING = sa.union(
    *(
        sa.select(table.c.sweep).where(table.c.call == _OF_CALL, table.c.state == State.PENDING)
        for table in (cells, stages)
    )
).subquery()
_SWEEPS_OF = (
    sa.select(sweeps.c.id)
    .where(sweeps.c.id.in_(sa.select(_NEEDING.c.sweep)), sweeps.c.state.in_(OPEN))
    .order_by(sweeps.c.seq)
)


_ADD_EVENT = events.insert()
_OPEN_TASKS = sa.select(tasks).where(tasks.c.call == _OF_CALL, tasks.c.state == State.PENDING).order_by(tasks.c.key)
_LOST_INPUTS = (
    sa.select(tasks.c.key, tasks.c.blame)
    .join(waits, waits.c.key == tasks.c.key)
    .where(waits.c.call == _OF_CALL, tasks.c.state.in_(WITHOUT_RESULT))
)
_OF_SWEEP: sa.BindParameter[Any] = sa.bindparam("of_sweep")
_SWEEP = sa.select(sweeps).where(sweeps.c.id == _OF_SWEEP)
_BEGIN = sweeps.update().where(sweeps.c.id == _OF_SWEEP, sweeps.c.state == State.PENDING).values(state=State.RUNNING)
_OPEN_CELL = sa.select(sa.literal(1)).where(cells.c.sweep == _OF_SWEEP, cells.c.state == State.PENDING).limit(1)


@functools.cache
def _move(to: State, names: tuple[str, ...]) -> sa.Update:
    values: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in names}
    if to is State.PENDING:  # what it waited for may be begun anew by now
        values["waiting"] = _WAITING
    return calls.update().where(calls.c.id == _OF_CALL, calls.c.state.in_(sources(to))).values(state=to, **values)


@functools.cache
def _settle(table: sa.Table, *, some: bool) -> sa.Update:
    query = table.update().where(table.c.call == _OF_CALL, table.c.state == State.PENDING)
    if some:
        query = query.where(table.c.key.in_(sa.bindparam("keys", expanding=True)))
    query = query.values(state=sa.bindparam("to"))
    return query.values(blame=sa.bindparam("blamed")) if table is tasks else query


@functools.cache
def _recount(*, of_call: bool) -> sa.Update:
    all_of_call = sa.select(tasks.c.key).where(tasks.c.call == _OF_CALL)
    which = waits.c.key.in_(all_of_call if of_call else sa.bindparam("keys", expanding=True))
    waiting = sa.select(waits.c.call).where(which)
    return calls.update().where(calls.c.state == State.PENDING, calls.c.id.in_(waiting)).values(waiting=_WAITING)


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
    """Insert rows that all have the same columns, in one statement: a sweep writes two rows a cell."""
    if rows:
        engine.insert_rows(connection, table, rows)


def ready_sweeps(connection: sa.Connection, now: float) -> Sequence[sa.Row[str, int]]:
    """The sweeps with a call that can begin, by urgency: ids and priorities."""
    query = (
        sa.select(sweeps.c.id, sweeps.c.priority)
        .where(
            sweeps.c.state.in_(OPEN),
            ~sweeps.c.paused,
            sa.select(calls.c.id).where(calls.c.sweep == sweeps.c.id, _ready(now)).exists(),
        )
        .order_by(sweeps.c.priority.desc(), sweeps.c.seq)
    )
    return connection.execute(query).all()


def ready_calls(connection: sa.Connection, sweep: str, now: float, limit: int) -> Sequence[sa.Row[Any]]:
    """Calls of the sweep that can begin, the oldest first; each with the sweep's ``spec``."""
    query = sa.select(calls, sweeps.c.spec).join(sweeps, sweeps.c.id == calls.c.sweep)
    query = query.where(calls.c.sweep == sweep, _ready(now)).order_by(calls.c.id).limit(limit)
    return connection.execute(query).all()


def _ready(now: float) -> sa.ColumnElement[bool]:
    # A pause that is longer than any was begun before the clock was set back.
    due = (calls.c.not_before <= now) | (calls.c.not_before > now + LONGEST_PAUSE_S)
    return sa.and_(calls.c.state == State.PENDING, calls.c.waiting == 0, due)


def recount(connection: sa.Connection, keys: Sequence[str]) -> None:
    """Count anew what the pending calls that wait for these tasks still wait for."""
    connection.execute(_recount(of_call=False), {"keys": keys})


def _awaited(sweep: str) -> sa.Select[int]:
    """The calls that open cells and stages of the sweep are a part of."""
    parts = sa.union(
        *(
            sa.select(table.c.call).where(table.c.sweep == sweep, table.c.state == State.PENDING)
            for table in (cells, stages)
        )
    ).subquery()
    return sa.select(parts.c.call)


def claim(connection: sa.Connection, sweep: str) -> None:
    """Make open calls that the sweep needs its own where the owner is less urgent, is paused or has ended."""
    own = connection.execute(_SWEEP, {"of_sweep": sweep}).one()
    if own.paused or own.state not in OPEN:
        return
    less_urgent = (sweeps.c.priority < own.priority) | ((sweeps.c.priority == own.priority) & (sweeps.c.seq > own.seq))
    behind = sa.select(sweeps.c.id).where(sweeps.c.paused | sweeps.c.state.in_(FINISHED) | less_urgent)
    connection.execute(
        calls.update()
        .where(
            calls.c.state.in_(OPEN),
            calls.c.id.in_(_awaited(sweep)),
            calls.c.sweep != sweep,
            calls.c.sweep.in_(behind),
        )
        .values(sweep=sweep)
    )


def hand_over(connection: sa.Connection, sweep: str) -> None:
    """Give open calls of a sweep that was paused or has ended to other sweeps that need them."""
    owned = sa.select(calls.c.id).where(calls.c.sweep == sweep, calls.c.state.in_(OPEN)).limit(1)
    if connection.scalar(owned) is None:
        return
    others = sa.select(sweeps.c.id).where(sweeps.c.state.in_(OPEN), ~sweeps.c.paused, sweeps.c.id != sweep)
    for other in connection.scalars(others.order_by(sweeps.c.priority, sweeps.c.seq.desc())).all():
        claim(connection, other)


def hand_over_all(connection: sa.Connection) -> None:
    """The same for every sweep that has ended or is paused."""
    idle = sweeps.c.paused | sweeps.c.state.in_(FINISHED)
    owners = sa.select(calls.c.sweep).where(calls.c.state.in_(OPEN)).distinct().subquery()
    found = sa.select(sweeps.c.id).where(sweeps.c.id.in_(sa.select(owners.c.sweep)), idle)
    for sweep in connection.scalars(found).all():
        hand_over(connection, sweep)


def cancel_unneeded(connection: sa.Connection, candidates: sa.Select[int]) -> None:
    """Cancel those of the candidate calls, and their open tasks, that no open sweep needs.

    Rows that are on their way into the table will be there: their call goes on, and is not computed twice.
    """
    wanted = [
        sa.select(sa.literal(1))
        .select_from(table.join(sweeps, sweeps.c.id == table.c.sweep))
        .where(table.c.call == calls.c.id, table.c.state == State.PENDING, sweeps.c.state.in_(OPEN))
        .exists()
        for table in (cells, stages)
    ]
    doomed = sa.and_(calls.c.state.in_(OPEN), calls.c.batch.is_(None), calls.c.id.in_(candidates), ~sa.or_(*wanted))
    connection.execute(calls.update().where(doomed).values(state=State.CANCELLED))
    gone = sa.select(calls.c.id).where(calls.c.state == State.CANCELLED, calls.c.id.in_(candidates))
    for table in (tasks, stages, cells):
        left = table.update().where(table.c.state == State.PENDING, table.c.call.in_(gone))
        connection.execute(left.values(state=State.CANCELLED))
    waiting = sa.select(waits.c.call).where(waits.c.key.in_(sa.select(tasks.c.key).where(tasks.c.call.in_(gone))))
    again = calls.update().where(calls.c.state == State.PENDING, calls.c.id.in_(waiting))
    connection.execute(again.values(waiting=_WAITING))


def calls_of(sweep: str) -> sa.Select[int]:
    """The calls that anything of the sweep was or is a part of."""
    parts = sa.union(*(sa.select(table.c.call).where(table.c.sweep == sweep) for table in (cells, stages))).subquery()
    return sa.select(parts.c.call)


def calls_of_ended() -> sa.Select[int]:
    """Open calls whose owner has ended."""
    ended = sa.select(sweeps.c.id).where(sweeps.c.state.in_(FINISHED))
    return sa.select(calls.c.id).where(calls.c.state.in_(OPEN), calls.c.sweep.in_(ended))


def begin_if_running(connection: sa.Connection, sweep: str) -> None:
    """Something of the sweep may run already, for another one."""
    running = sa.select(calls.c.id).where(calls.c.state == State.RUNNING, calls.c.id.in_(calls_of(sweep))).limit(1)
    if connection.scalar(running) is not None:
        begin_sweep(connection, sweep)


def count_failed(connection: sa.Connection, sweep: str) -> int:
    """How many cells of the sweep have failed."""
    query = sa.select(sa.func.count()).where(cells.c.sweep == sweep, cells.c.state == State.FAILED)
    return connection.scalar(query) or 0


def split_call(connection: sa.Connection, call: int, pieces: Sequence[Sequence[str]]) -> list[int]:
    """Move each piece of a pending call's open tasks to a call of its own, which is else as the old one."""
    row = connection.execute(sa.select(calls).where(calls.c.id == call)).one()
    same = {name: row._mapping[name] for name in ("sweep", "kind", "state", "attempt", "crashes", "losses")}
    made = []
    for piece in pieces:
        values = {**same, "size": len(piece), "waiting": row.waiting, "not_before": row.not_before}
        number = int(connection.execute(calls.insert().values(**values)).inserted_primary_key[0])  # type: ignore[index]
        for keys in chunks(piece):
            for table in (tasks, stages, cells):
                moved = table.update().where(table.c.call == call, table.c.state == State.PENDING)
                connection.execute(moved.where(table.c.key.in_(keys)).values(call=number))
        awaited = sa.select(sa.literal(number), waits.c.key).where(waits.c.call == call)
        connection.execute(waits.insert().from_select(["call", "key"], awaited))
        made.append(number)
    left = sa.select(sa.func.count()).where(tasks.c.call == call, tasks.c.state == State.PENDING)
    connection.execute(calls.update().where(calls.c.id == call).values(size=left.scalar_subquery()))
    return made


def move_call(connection: sa.Connection, call: int, to: State, **values: Any) -> bool:
    """Move a call to another state if that is a legal step; returns whether it was."""
    names = tuple(sorted(values))
    given = {f"new_{name}": values[name] for name in names}
    return connection.execute(_move(to, names), {"of_call": call, **given}).rowcount == 1


def settle_tasks(
    connection: sa.Connection, call: int, to: State, keys: Iterable[str] | None = None, blame: str | None = None
) -> None:
    """End the open tasks of a call (all, or these), for every sweep that needs them and every call that waits."""
    pieces: Iterable[list[str] | None] = [None] if keys is None else chunks(keys)
    for piece in pieces:
        which: dict[str, Any] = {} if piece is None else {"keys": piece}
        for table in (tasks, stages, cells):
            blamed = {"blamed": blame} if table is tasks else {}
            query = _settle(table, some=piece is not None)
            connection.execute(query, {"of_call": call, "to": to, **blamed, **which})
        connection.execute(_recount(of_call=piece is None), which or {"of_call": call})


def sweeps_of(connection: sa.Connection, call: int) -> list[str]:
    """The open sweeps that wait for a task of this call."""
    return list(connection.scalars(_SWEEPS_OF, {"of_call": call}))


def sweep_row(connection: sa.Connection, sweep: str) -> sa.Row[Any] | None:
    """The sweep, if there is such a one."""
    return connection.execute(_SWEEP, {"of_sweep": sweep}).one_or_none()


def begin_sweep(connection: sa.Connection, sweep: str) -> None:
    """Something of a sweep runs."""
    connection.execute(_BEGIN, {"of_sweep": sweep})


def has_open_cells(connection: sa.Connection, sweep: str) -> bool:
    """Whether a cell of the sweep has not ended."""
    return connection.scalar(_OPEN_CELL, {"of_sweep": sweep}) is not None


def open_tasks(connection: sa.Connection, call: int) -> Sequence[sa.Row[Any]]:
    """The tasks of a call that have not ended, by their keys."""
    return connection.execute(_OPEN_TASKS, {"of_call": call}).all()


def lost_inputs(connection: sa.Connection, call: int) -> dict[str, str]:
    """The tasks that a call waited for and that ended without a result, with the task that is to blame for each."""
    return {row.key: row.blame or row.key for row in connection.execute(_LOST_INPUTS, {"of_call": call})}


def open_calls(connection: sa.Connection, sweep: str) -> Sequence[sa.Row[Any]]:
    """The calls that a sweep waits for, whichever sweep they were made for."""
    query = sa.select(calls).where(calls.c.id.in_(_awaited(sweep)), calls.c.state.in_(OPEN))
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
    connection.execute(_ADD_EVENT, {"sweep": sweep, "at": time.time(), "type": kind, "data": data})


def task_row(key: str, kind: str, call: int, payload: str) -> Mapping[str, Any]:
    """A new task."""
    return {"key": key, "kind": kind, "state": State.PENDING, "call": call, "payload": payload, "diverged": False}


def dump_task(task: Task) -> str:
    """A task as the ledger keeps it."""
    return json.dumps(
        {
            "version": task.version,
            "params": task.params,
            "parents": task.parents,
            "group": task.group,
            "source": task.source,
        }
    )


def load_task(key: str, kind: str, payload: str) -> Task:
    """The task of a ledger row."""
    return Task(kind=kind, key=key, **json.loads(payload))
