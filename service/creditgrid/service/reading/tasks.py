"""The tasks that the cells of a sweep depend on, and any task by its key."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from creditgrid.core.errors import NotFoundError
from creditgrid.core.experiments.registry import registry
from creditgrid.core.states import State
from creditgrid.core.wire import TaskDocument, TaskView
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.tables import calls, stages, sweeps, tasks
from creditgrid.service.reading.sweeps import known_sweep, shown_state
from creditgrid.service.scheduling.call_settings import parsed, resources


class Tasks:
    """Reads from any thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def page(self, sweep: str, state: State | None, after: str, limit: int) -> tuple[list[TaskView], str | None]:
        """Stages of the sweep with a key above ``after``, in the order of their keys; and the next page's ``after``.

        Raises:
            NotFoundError: for an unknown sweep.
        """
        shown = shown_state(stages)
        query = (
            sa.select(
                stages.c.key,
                shown.label("state"),
                stages.c.state.label("stored_state"),
                *(tasks.c.kind, tasks.c.payload, tasks.c.bytes),
                *(calls.c.attempt, calls.c.seconds, calls.c.size, calls.c.error),
            )
            .select_from(stages.join(tasks, tasks.c.key == stages.c.key).outerjoin(calls, calls.c.id == stages.c.call))
            .where(stages.c.sweep == sweep, stages.c.key > after)
            .order_by(stages.c.key)
            .limit(limit + 1)
        )
        if state is not None:
            query = query.where(shown == state)
        with self._ledger.read() as connection:
            known_sweep(connection, sweep)
            rows = connection.execute(query).all()
        views = [_view(row) for row in rows[:limit]]
        return views, rows[limit - 1].key if len(rows) > limit else None

    def get(self, key: str) -> TaskDocument:
        """A stage or cell of any sweep, with all that a machine needs to compute it.

        Raises:
            NotFoundError: no sweep has a task with this key.
        """
        called = tasks.outerjoin(calls, calls.c.id == tasks.c.call).outerjoin(sweeps, sweeps.c.id == calls.c.sweep)
        query = sa.select(tasks.c.kind, tasks.c.payload, sweeps.c.spec).select_from(called)
        with self._ledger.read() as connection:
            row = connection.execute(query.where(tasks.c.key == key)).one_or_none()
        if row is None:
            raise NotFoundError(f"there is no task {key[:80]!r}")
        kind = registry().kinds.get(row.kind)
        cpu = 1.0
        if kind is not None:  # its package is installed
            cpu = resources(kind, None if row.spec is None else parsed(row.spec)).cpu
        return TaskDocument(key=key, kind=row.kind, cpu=cpu, **json.loads(row.payload))


def _view(row: sa.Row[Any]) -> TaskView:
    payload = json.loads(row.payload)
    return TaskView(
        key=row.key,
        kind=row.kind,
        state=State(row.state),
        params=payload["params"],
        parents=payload["parents"],
        attempt=row.attempt or 0,
        seconds=None if row.seconds is None else row.seconds / max(row.size, 1),
        bytes=row.bytes,
        error=row.error if row.stored_state in (State.FAILED, State.PENDING) else None,
    )
