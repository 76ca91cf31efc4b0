"""What failed in a sweep, by cause."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from creditgrid.core.states import State
from creditgrid.core.wire import FailureView
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.tables import calls, cells, one_of, stages, tasks
from creditgrid.service.reading.logs import Logs
from creditgrid.service.reading.sweeps import ROWS_AT_ONCE, known_sweep

NUMBER = re.compile(r"\d+(\.\d+)?")
FAILURES_SHOWN = 100
"""Distinct causes that are shown, the most frequent first."""


class Failures:
    """Reads from any thread."""

    def __init__(self, ledger: Ledger, logs: Logs) -> None:
        self._ledger, self._logs = ledger, logs

    def of(self, sweep: str) -> list[FailureView]:
        """What failed by cause, the most frequent first. Messages that differ only in numbers have one cause.

        Raises:
            NotFoundError: for an unknown sweep.
        """
        first: dict[tuple[str, str], sa.Row[Any]] = {}  # by kind and cause, as the counters
        count, skipped, attempt = Counter[Any](), Counter[Any](), Counter[Any]()
        with self._ledger.read() as connection:
            known_sweep(connection, sweep)
            skipped_by_call = _count_skipped(connection, sweep)
            for row in _failed_calls(connection, sweep):
                group = row.kind, NUMBER.sub("#", first_line(row.error))
                first.setdefault(group, row)
                count[group] += row.n
                skipped[group] += skipped_by_call[row.id]
                attempt[group] = max(attempt[group], row.attempt)
            shown = [group for group, _ in count.most_common(FAILURES_SHOWN)]
            details = sa.select(calls.c.id, calls.c.traceback, calls.c.host, calls.c.log)
            details = details.where(calls.c.id.in_([first[group].id for group in shown]))
            detail = {row.id: row for row in connection.execute(details)}
            key = {group: _failed_key(connection, sweep, first[group].id) for group in shown}
        return [
            FailureView(
                cause=first_line(first[group].error),
                kind=first[group].kind,
                count=count[group],
                skipped=skipped[group],
                traceback=detail[first[group].id].traceback or "",
                log=self._logs.tail(detail[first[group].id].log),
                attempt=attempt[group],
                host=detail[first[group].id].host or None,
                key=key[group],
                command=f"creditgrid run-task {key[group]}",
            )
            for group in shown
        ]


def first_line(error: str | None) -> str:
    """The cause that is shown of a call's error."""
    return (error or "failed").splitlines()[0]


def _failed_calls(connection: sa.Connection, sweep: str) -> Iterator[sa.Row[Any]]:
    """Calls with failed tasks of the sweep, and the number ``n`` of these tasks."""
    c = calls.c
    for table in (stages, cells):
        failed = (
            sa.select(table.c.call, sa.func.count().label("n"))
            .where(table.c.sweep == sweep, one_of(table.c.state, [State.FAILED]))
            .group_by(table.c.call)
            .subquery()
        )
        query: sa.Select[Any] = sa.select(c.id, c.kind, c.error, c.attempt, failed.c.n)
        query = query.join(failed, failed.c.call == c.id)
        yield from connection.execute(query.order_by(c.id), execution_options={"yield_per": ROWS_AT_ONCE})


def _failed_key(connection: sa.Connection, sweep: str, call: int) -> str:
    """The first failed task of the call that the sweep has."""
    for table in (stages, cells):
        failed = sa.and_(table.c.call == call, table.c.state == State.FAILED)
        mine = table.c.sweep.concat("") == sweep  # no index has this expression: the call's is used
        if (key := connection.scalar(sa.select(sa.func.min(table.c.key)).where(failed, mine))) is not None:
            return str(key)
    raise AssertionError(f"call {call} has no failed task of {sweep}")


def _count_skipped(connection: sa.Connection, sweep: str) -> Counter[int]:
    """Skipped cells of the sweep by the failed call that they depend on."""
    blamed = tasks.alias()
    joined = cells.join(tasks, tasks.c.key == cells.c.key).join(blamed, blamed.c.key == tasks.c.blame)
    query = (
        sa.select(blamed.c.call, sa.func.count().label("n"))
        .select_from(joined)
        .where(cells.c.sweep == sweep, one_of(cells.c.state, [State.SKIPPED]))
        .group_by(blamed.c.call)
    )
    return Counter({row.call: row.n for row in connection.execute(query)})
