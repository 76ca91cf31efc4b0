"""What failed in a sweep, by cause."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any

import sqlalchemy as sa

from creditgrid.core.states import State
from creditgrid.core.wire import FailureView
from creditgrid.service.ledger import tables
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.reading.sweeps import sweep_row

NUMBER = re.compile(r"\d+(\.\d+)?")
FAILURES_SHOWN = 100
"""Distinct causes that a sweep's failures are grouped into, the most frequent first."""


class Failures:
    """Reads from any thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def of(self, sweep: str) -> list[FailureView]:
        """What failed by cause, the most frequent first; messages that differ in numbers alone are of one cause."""
        with self._ledger.read() as connection:
            sweep_row(connection, sweep)
            groups: dict[tuple[str, str], list[tuple[sa.Row[Any], int, str]]] = defaultdict(list)
            for table in (tables.stages, tables.cells):
                query = (
                    sa.select(tables.calls, sa.func.count().label("n"), sa.func.min(table.c.key).label("key"))
                    .select_from(table.join(tables.calls, tables.calls.c.id == table.c.call))
                    .where(table.c.sweep == sweep, table.c.state == State.FAILED)
                    .group_by(tables.calls.c.id)
                )
                for row in connection.execute(query):
                    groups[row.kind, NUMBER.sub("#", _cause(row))].append((row, row.n, row.key))
            skipped = self._skipped(connection, sweep)
        views = [
            FailureView(
                cause=_cause(members[0][0]),
                kind=kind,
                count=sum(n for _, n, _ in members),
                skipped=sum(skipped[row.id] for row, _, _ in members),
                traceback=members[0][0].traceback or "",
                attempt=max(row.attempt for row, _, _ in members),
                host=members[0][0].host or None,
                key=members[0][2],
                command=f"creditgrid run-task {members[0][2]}",
            )
            for (kind, _), members in groups.items()
        ]
        return sorted(views, key=lambda view: -view.count)[:FAILURES_SHOWN]

    def _skipped(self, connection: sa.Connection, sweep: str) -> Counter[int]:
        """Skipped cells of the sweep by the call that failed below them."""
        blamed = tables.tasks.alias()
        query = (
            sa.select(blamed.c.call, sa.func.count().label("n"))
            .select_from(
                tables.cells.join(tables.tasks, tables.tasks.c.key == tables.cells.c.key).join(
                    blamed, blamed.c.key == tables.tasks.c.blame
                )
            )
            .where(tables.cells.c.sweep == sweep, tables.cells.c.state == State.SKIPPED)
            .group_by(blamed.c.call)
        )
        return Counter({row.call: row.n for row in connection.execute(query)})


def _cause(call: sa.Row[Any]) -> str:
    return (call.error or "failed").splitlines()[0]
