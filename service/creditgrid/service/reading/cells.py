"""The cells of a sweep."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from creditgrid.core.states import State
from creditgrid.core.wire import CellView
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.tables import calls, cells, tasks
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
        shown, c = shown_state(cells), cells.c
        query = (
            sa.select(c.idx, c.key, shown.label("state"), tasks.c.payload, tasks.c.diverged, calls.c.error)
            .select_from(cells.join(tasks, tasks.c.key == c.key).outerjoin(calls, calls.c.id == c.call))
            .where(c.sweep == sweep, c.idx > after)
            .order_by(c.idx)
            .limit(limit + 1)
        )
        if state is not None:
            query = query.where(shown == state)
        with self._ledger.read() as connection:
            known_sweep(connection, sweep)
            rows = connection.execute(query).all()
        views = [_view(row) for row in rows[:limit]]
        return views, rows[limit - 1].idx if len(rows) > limit else None


def _view(row: sa.Row[Any]) -> CellView:
    payload, state, error = json.loads(row.payload), State(row.state), None
    if state is State.FAILED:
        error = first_line(row.error)
    elif state is State.SKIPPED:
        error = "a task that it needs has no result"
    return CellView(
        index=row.idx,
        key=row.key,
        state=state,
        params={**payload["source"], **payload["params"]},
        parents=payload["parents"],
        diverged=row.diverged,
        error=error,
    )
