"""The cells of a sweep, the tasks that they depend on, and any task by its key."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from creditgrid.core.errors import NotFoundError
from creditgrid.core.experiments.registry import registry
from creditgrid.core.packed_tasks import parents_in
from creditgrid.core.states import State
from creditgrid.core.wire import CellView, TaskDocument, TaskView
from creditgrid.service.call_settings import parsed, resources
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.tables import calls, cells, one_of, stages, sweeps, tasks
from creditgrid.service.reading.failures import first_line
from creditgrid.service.reading.sweeps import known_sweep, shown_state


class Cells:
    """Reads from any thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def page(self, sweep: str, state: State | None, after: int, limit: int) -> tuple[list[CellView], int | None]:
        """Cells with an index above ``after``, in order; and the next page's ``after``.

        Raises:
            NotFoundError: for an unknown sweep.
        """
        rows, following = _page(self._ledger, cells, cells.c.idx, sweep, state=state, after=after, limit=limit)
        return [_cell(row) for row in rows], following


class Tasks:
    """Reads from any thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def page(self, sweep: str, state: State | None, after: str, limit: int) -> tuple[list[TaskView], str | None]:
        """Stages of the sweep with a key above ``after``, in the order of their keys; and the next page's ``after``.

        Raises:
            NotFoundError: for an unknown sweep.
        """
        rows, following = _page(self._ledger, stages, stages.c.key, sweep, state=state, after=after, limit=limit)
        return [_stage(row) for row in rows], following

    def get(self, key: str) -> TaskDocument:
        """A stage or cell of any sweep, with all that a machine needs to compute it.

        Raises:
            NotFoundError: no sweep has a task with this key.
        """
        called = tasks.outerjoin(calls, calls.c.id == tasks.c.call).outerjoin(sweeps, sweeps.c.id == calls.c.sweep)
        query = sa.select(tasks.c.kind, tasks.c.params, tasks.c.shared, sweeps.c.spec).select_from(called)
        with self._ledger.read() as connection:
            row = connection.execute(query.where(tasks.c.key == key)).one_or_none()
        if row is None:
            raise NotFoundError(f"there is no task {key[:80]!r}")
        kind = registry().kinds.get(row.kind)
        cpu = 1.0
        if kind is not None:  # its package is installed
            cpu = resources(kind, None if row.spec is None else parsed(row.spec)).cpu
        return TaskDocument(key=key, kind=row.kind, cpu=cpu, params=json.loads(row.params), **json.loads(row.shared))


def _page(
    ledger: Ledger,
    table: sa.Table,
    position: sa.Column[Any],
    sweep: str,
    *,
    state: State | None,
    after: int | str,
    limit: int,
) -> tuple[Sequence[sa.Row[Any]], Any]:
    """Rows of ``cells`` or ``stages`` after a position, each with its task and call; and the next page's ``after``."""
    found = (
        sa.select(position.label("position"), table.c.key, table.c.call, table.c.state)
        .where(_in_state(table, sweep, state), position > after)
        .order_by(position)
        .limit(limit + 1)
        .subquery()
    )
    query = (
        sa.select(found.c.position, found.c.key, shown_state(found).label("state"), found.c.state.label("stored_state"))
        .add_columns(tasks.c.kind, tasks.c.params, tasks.c.shared, tasks.c.bytes, tasks.c.diverged)
        .add_columns(calls.c.attempt, calls.c.seconds, calls.c.size, calls.c.error)
        .select_from(found.join(tasks, tasks.c.key == found.c.key).outerjoin(calls, calls.c.id == found.c.call))
        .order_by(found.c.position)
    )
    with ledger.read() as connection:
        known_sweep(connection, sweep)
        rows = connection.execute(query).all()
    return rows[:limit], rows[limit - 1].position if len(rows) > limit else None


def _in_state(table: sa.Table, sweep: str, state: State | None) -> sa.ColumnElement[bool]:
    """The sweep's rows that show this state, by what an index holds: a page costs no more than its rows.

    An open row shows the state of its call. Few calls are in flight, so their rows are found by the call. All other
    open rows are pending.
    """
    mine = table.c.sweep == sweep
    if state is None:
        return mine
    if state.finished:
        return mine & one_of(table.c.state, [state])
    pending = one_of(table.c.state, [State.PENDING])
    if state is State.PENDING:
        in_flight = sa.select(calls.c.id).where(one_of(calls.c.state, (State.QUEUED, State.RUNNING)))
        return mine & pending & (table.c.call.is_(None) | table.c.call.not_in(in_flight))
    by_call = table.c.call.in_(sa.select(calls.c.id).where(one_of(calls.c.state, [state])))
    return by_call & pending & (table.c.sweep.concat("") == sweep)  # no index has this expression: the call's is used


def _cell(row: sa.Row[Any]) -> CellView:
    shared, state, error = json.loads(row.shared), State(row.state), None
    if state is State.FAILED:
        error = first_line(row.error)
    elif state is State.SKIPPED:
        error = "a task that it needs has no result"
    return CellView(
        index=row.position,
        key=row.key,
        state=state,
        params={**shared["source"], **json.loads(row.params)},
        parents=shared["parents"],
        diverged=row.diverged,
        error=error,
    )


def _stage(row: sa.Row[Any]) -> TaskView:
    return TaskView(
        key=row.key,
        kind=row.kind,
        state=State(row.state),
        params=json.loads(row.params),
        parents=parents_in(row.shared),
        attempt=row.attempt or 0,
        seconds=None if row.seconds is None else row.seconds / max(row.size, 1),
        bytes=row.bytes,
        error=row.error if row.stored_state in (State.FAILED, State.PENDING) else None,
    )
