"""The cells of a sweep."""

from __future__ import annotations

import json

import sqlalchemy as sa

from creditgrid.core.states import State
from creditgrid.core.wire import CellView
from creditgrid.service.ledger import tables
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.reading.sweeps import shown_state, sweep_row


class Cells:
    """Reads from any thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def page(self, sweep: str, state: State | None, after: int, limit: int) -> tuple[list[CellView], int | None]:
        """Cells with an index above ``after``, in order; and what to ask for next."""
        shown = shown_state(tables.cells)
        query = (
            sa.select(
                tables.cells.c.idx,
                tables.cells.c.key,
                shown.label("state"),
                tables.tasks.c.payload,
                tables.tasks.c.diverged,
                tables.calls.c.error,
            )
            .select_from(
                tables.cells.join(tables.tasks, tables.tasks.c.key == tables.cells.c.key).outerjoin(
                    tables.calls, tables.calls.c.id == tables.cells.c.call
                )
            )
            .where(tables.cells.c.sweep == sweep, tables.cells.c.idx > after)
            .order_by(tables.cells.c.idx)
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
            params = {**payload["source"], **payload["params"]}
            views.append(
                CellView(
                    index=row.idx,
                    key=row.key,
                    state=State(row.state),
                    params=params,
                    parents=payload["parents"],
                    diverged=row.diverged,
                    error=_why(State(row.state), row.error),
                )
            )
        return views, rows[limit - 1].idx if len(rows) > limit else None


def _why(state: State, error: str | None) -> str | None:
    if state is State.FAILED:
        return (error or "failed").splitlines()[0]
    return "a task that it needs has no result" if state is State.SKIPPED else None
