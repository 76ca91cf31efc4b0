"""What failed in a sweep, by cause."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import sqlalchemy as sa

from creditgrid.core.states import State
from creditgrid.core.wire import FailureView
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.tables import calls, cells, stages, tasks
from creditgrid.service.reading.sweeps import ROWS_AT_ONCE, known_sweep

NUMBER = re.compile(r"\d+(\.\d+)?")
FAILURES_SHOWN = 100
"""Distinct causes that are shown, the most frequent first."""


@dataclass(slots=True)
class _Failure:
    """The failed tasks of one kind and cause: their first call and key, and totals."""

    call: int
    key: str
    kind: str
    cause: str
    count: int = 0
    skipped: int = 0
    attempt: int = 0


class Failures:
    """Reads from any thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def of(self, sweep: str) -> list[FailureView]:
        """What failed by cause, the most frequent first. Messages that differ only in numbers have one cause.

        Raises:
            NotFoundError: for an unknown sweep.
        """
        c = calls.c
        with self._ledger.read() as connection:
            known_sweep(connection, sweep)
            found = sorted(_group(connection, sweep), key=lambda failure: -failure.count)[:FAILURES_SHOWN]
            query = sa.select(c.id, c.traceback, c.host).where(c.id.in_([failure.call for failure in found]))
            details = {row.id: row for row in connection.execute(query)}
        return [
            FailureView(
                cause=failure.cause,
                kind=failure.kind,
                count=failure.count,
                skipped=failure.skipped,
                traceback=details[failure.call].traceback or "",
                attempt=failure.attempt,
                host=details[failure.call].host or None,
                key=failure.key,
                command=f"creditgrid run-task {failure.key}",
            )
            for failure in found
        ]


def first_line(error: str | None) -> str:
    """The cause that is shown of a call's error."""
    return (error or "failed").splitlines()[0]


def _group(connection: sa.Connection, sweep: str) -> list[_Failure]:
    skipped = _count_skipped(connection, sweep)
    failures: dict[tuple[str, str], _Failure] = {}
    for table in (stages, cells):
        c = calls.c
        query = (
            sa.select(
                c.id, c.kind, c.error, c.attempt, sa.func.count().label("n"), sa.func.min(table.c.key).label("key")
            )
            .select_from(table.join(calls, c.id == table.c.call))
            .where(table.c.sweep == sweep, table.c.state == State.FAILED)
            .group_by(c.id)
        )
        for row in connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE}):
            cause = first_line(row.error)
            kind = row.kind, NUMBER.sub("#", cause)
            failure = failures.setdefault(kind, _Failure(row.id, row.key, row.kind, cause))
            failure.count += row.n
            failure.skipped += skipped[row.id]
            failure.attempt = max(failure.attempt, row.attempt)
    return list(failures.values())


def _count_skipped(connection: sa.Connection, sweep: str) -> Counter[int]:
    """Skipped cells of the sweep by the failed call that they depend on."""
    blamed = tasks.alias()
    joined = cells.join(tasks, tasks.c.key == cells.c.key).join(blamed, blamed.c.key == tasks.c.blame)
    query = (
        sa.select(blamed.c.call, sa.func.count().label("n"))
        .select_from(joined)
        .where(cells.c.sweep == sweep, cells.c.state == State.SKIPPED)
        .group_by(blamed.c.call)
    )
    return Counter({row.call: row.n for row in connection.execute(query)})
