"""The tasks that the cells of a sweep depend on, and any task by its key."""

from __future__ import annotations

import json

import sqlalchemy as sa

from creditgrid.core.errors import NotFoundError
from creditgrid.core.experiments.registry import registry
from creditgrid.core.states import State
from creditgrid.core.wire import TaskDocument, TaskView
from creditgrid.service.ledger import tables
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.reading.sweeps import shown_state, sweep_row
from creditgrid.service.scheduling.call_settings import parsed, resources


class Tasks:
    """Reads from any thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def page(self, sweep: str, state: State | None, after: str, limit: int) -> tuple[list[TaskView], str | None]:
        """The stages of a sweep with a key above ``after``, in order of their keys; and what to ask for next."""
        shown = shown_state(tables.stages)
        query = (
            sa.select(
                tables.stages.c.key,
                shown.label("state"),
                tables.stages.c.state.label("ended"),
                tables.tasks.c.kind,
                tables.tasks.c.payload,
                tables.tasks.c.bytes,
                tables.calls.c.attempt,
                tables.calls.c.seconds,
                tables.calls.c.size,
                tables.calls.c.error,
            )
            .select_from(
                tables.stages.join(tables.tasks, tables.tasks.c.key == tables.stages.c.key).outerjoin(
                    tables.calls, tables.calls.c.id == tables.stages.c.call
                )
            )
            .where(tables.stages.c.sweep == sweep, tables.stages.c.key > after)
            .order_by(tables.stages.c.key)
            .limit(limit + 1)
        )
        if state is not None:
            query = query.where(shown == state)
        with self._ledger.read() as connection:
            sweep_row(connection, sweep)
            rows = connection.execute(query).all()
        views = []
        for row in rows[:limit]:
            payload = json.loads(row.payload)
            views.append(
                TaskView(
                    key=row.key,
                    kind=row.kind,
                    state=State(row.state),
                    params=payload["params"],
                    parents=payload["parents"],
                    attempt=row.attempt or 0,
                    seconds=None if row.seconds is None else row.seconds / max(row.size, 1),
                    bytes=row.bytes,
                    error=row.error if row.ended in (State.FAILED, State.PENDING) else None,
                )
            )
        return views, rows[limit - 1].key if len(rows) > limit else None

    def get(self, key: str) -> TaskDocument:
        """A stage or cell of any sweep, as a machine needs it to compute it.

        Raises:
            NotFoundError: for a key that no sweep has named.
        """
        called = tables.tasks.outerjoin(tables.calls, tables.calls.c.id == tables.tasks.c.call).outerjoin(
            tables.sweeps, tables.sweeps.c.id == tables.calls.c.sweep
        )
        query = sa.select(tables.tasks.c.kind, tables.tasks.c.payload, tables.sweeps.c.spec).select_from(called)
        with self._ledger.read() as connection:
            row = connection.execute(query.where(tables.tasks.c.key == key)).one_or_none()
        if row is None:
            raise NotFoundError(f"there is no task {key[:80]!r}")
        kind = registry().kinds.get(row.kind)
        cpu = 1.0
        if kind is not None:  # else its package is gone, and nothing here computes it
            cpu = resources(kind, None if row.spec is None else parsed(row.spec)).cpu
        return TaskDocument(key=key, kind=row.kind, cpu=cpu, **json.loads(row.payload))
