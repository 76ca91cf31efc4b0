"""Queries of the scheduler, the planner and control; none changes a row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from creditgrid.core.states import OPEN, WITHOUT_RESULT, State
from creditgrid.service.ledger.tables import calls, cells, chunks, idempotency, stages, sweeps, tasks, waits
from creditgrid.service.ledger.task_states import STATE, ended_as

LONGEST_PAUSE_S = 600.0
"""The pause between two attempts of a call doubles up to this."""

# Statements that every call needs are built once: building one costs as much as running it.
_OF_CALL: sa.BindParameter[int] = sa.bindparam("of_call")
_SWEEP = sa.select(sweeps).where(sweeps.c.id == sa.bindparam("of_sweep"), sweeps.c.planned)
_OPEN_TASKS = (
    sa.select(tasks.c.key, tasks.c.params, tasks.c.shared)
    .where(tasks.c.call == _OF_CALL, tasks.c.state == State.PENDING)
    .order_by(tasks.c.key)
)
_TASK_STATES = sa.select(tasks.c.key, STATE, tasks.c.call).where(tasks.c.key.in_(sa.bindparam("keys", expanding=True)))
_LOST_INPUTS = (
    sa.select(tasks.c.key, tasks.c.blame)
    .join(waits, waits.c.key == tasks.c.key)
    .where(waits.c.call == _OF_CALL, ended_as(WITHOUT_RESULT))
)
_TASK: sa.Select[Any] = sa.select(
    STATE.label("state"),
    *(column for column in tasks.c if column is not tasks.c.state),
)


def sweep_row(connection: sa.Connection, sweep: str) -> sa.Row[Any] | None:
    """The sweep, or None."""
    return connection.execute(_SWEEP, {"of_sweep": sweep}).one_or_none()


def replayed(connection: sa.Connection, key: str) -> sa.Row[Any] | None:
    """The request with this idempotency key: the digest of its ``body`` and its ``sweep``; or None."""
    return connection.execute(sa.select(idempotency).where(idempotency.c.key == key)).one_or_none()


def call_row(connection: sa.Connection, call: int) -> sa.Row[Any]:
    """The call."""
    return connection.execute(sa.select(calls).where(calls.c.id == call)).one()


def ready_sweeps(connection: sa.Connection, now: float) -> Sequence[sa.Row[str, int, str | None]]:
    """The sweeps with a call that can start, the most urgent first: ``id``, ``priority`` and ``owner``."""
    query = (
        sa.select(sweeps.c.id, sweeps.c.priority, sweeps.c.owner)
        .where(
            sweeps.c.state.in_(OPEN),
            ~sweeps.c.paused,
            sweeps.c.planned,
            sa.select(calls.c.id).where(calls.c.sweep == sweeps.c.id, _ready(now)).exists(),
        )
        .order_by(sweeps.c.priority.desc(), sweeps.c.seq)
    )
    return connection.execute(query).all()


def ready_calls(connection: sa.Connection, sweep: str, now: float, limit: int) -> Sequence[sa.Row[Any]]:
    """Calls of the sweep that can start, the oldest first; each with the sweep's ``spec``."""
    query = sa.select(calls, sweeps.c.spec).join(sweeps, sweeps.c.id == calls.c.sweep)
    query = query.where(calls.c.sweep == sweep, _ready(now)).order_by(calls.c.id).limit(limit)
    return connection.execute(query).all()


def _ready(now: float) -> sa.ColumnElement[bool]:
    # Nobody sets a longer pause than the longest: the clock was set back since.
    due = (calls.c.not_before <= now) | (calls.c.not_before > now + LONGEST_PAUSE_S)
    return sa.and_(calls.c.state == State.PENDING, calls.c.waiting == 0, due)


def calls_in_flight(connection: sa.Connection) -> Sequence[sa.Row[Any]]:
    """The calls that the runner had when the ledger was last written."""
    return connection.execute(sa.select(calls).where(calls.c.state.in_((State.QUEUED, State.RUNNING)))).all()


def cancelled_calls(connection: sa.Connection, among: Sequence[int]) -> list[int]:
    """Those of these calls that are cancelled."""
    query = sa.select(calls.c.id).where(calls.c.state == State.CANCELLED)
    return [call for piece in chunks(among) for call in connection.scalars(query.where(calls.c.id.in_(piece)))]


def count_suspects(connection: sa.Connection, sweep: str, crashes: int) -> int:
    """How many open calls of the sweep have crashed at least this often."""
    query = sa.select(sa.func.count()).where(
        calls.c.sweep == sweep, calls.c.state.in_(OPEN), calls.c.crashes >= crashes
    )
    return connection.scalar(query) or 0


def parameters_of(connection: sa.Connection, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The parameters of tasks, and their source, by key; unknown keys are left out."""
    found: dict[str, dict[str, Any]] = {}
    for piece in chunks(keys):
        rows = connection.execute(sa.select(tasks.c.key, tasks.c.params, tasks.c.shared).where(tasks.c.key.in_(piece)))
        found |= {key: {**json.loads(shared)["source"], **json.loads(params)} for key, params, shared in rows}
    return found


def open_tasks(connection: sa.Connection, call: int) -> list[tuple[str, str, str]]:
    """The tasks of a call that have not ended, in the order of their keys: key, parameters and shared text of each."""
    # The driver's own rows: SQLAlchemy's cost as much again, for each of thousands of tasks.
    cursor = connection.execute(_OPEN_TASKS, {"of_call": call}).cursor
    assert cursor is not None, "a SELECT has a cursor"
    return list(cursor.fetchall())


def task_row(connection: sa.Connection, key: str) -> sa.Row[Any] | None:
    """The task, or None; ``state`` is pending until it has ended."""
    return connection.execute(_TASK.where(tasks.c.key == key)).one_or_none()


def task_states(connection: sa.Connection, keys: Sequence[str]) -> dict[str, tuple[State, int]]:
    """State (pending until it has ended) and call of those of these tasks that the ledger knows."""
    found = (row for piece in chunks(keys) for row in connection.execute(_TASK_STATES, {"keys": piece}))
    return {key: (State(state), call) for key, state, call in found}


def call_states(connection: sa.Connection, among: Iterable[int]) -> dict[int, State]:
    """The states of these calls."""
    query = sa.select(calls.c.id, calls.c.state)
    found = (row for piece in chunks(among) for row in connection.execute(query.where(calls.c.id.in_(piece))))
    return {call: State(state) for call, state in found}


def hidden_plans(connection: sa.Connection) -> list[str]:
    """The sweeps that are not planned to the end."""
    return list(connection.scalars(sa.select(sweeps.c.id).where(~sweeps.c.planned)))


def keys_to_keep(connection: sa.Connection, plan: str) -> set[str]:
    """Keys of a plan's tasks that the ledger may have had before: its stages, and cells of others. Reads all cells."""
    own = sa.select(calls.c.id).where(calls.c.sweep == plan)
    shared = sa.select(tasks.c.key).join(cells, cells.c.key == tasks.c.key)
    found = set(connection.scalars(shared.where(tasks.c.call.in_(own), cells.c.sweep != plan)))
    return found.union(connection.scalars(sa.select(stages.c.key).where(stages.c.sweep == plan)))


def lost_inputs(connection: sa.Connection, call: int) -> dict[str, str]:
    """The tasks that a call waited for and that ended without a result, with the task to blame for each."""
    return {row.key: row.blame or row.key for row in connection.execute(_LOST_INPUTS, {"of_call": call})}


def cells_in(connection: sa.Connection, sweep: str, states: Sequence[State]) -> set[int]:
    """The indices of the sweep's cells in these states."""
    return set(connection.scalars(sa.select(cells.c.idx).where(cells.c.sweep == sweep, cells.c.state.in_(states))))
