"""Sweeps as users see them: state, counts, time left, and events."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from creditgrid.core.errors import NotFoundError
from creditgrid.core.spec.extension import forms
from creditgrid.core.states import OPEN, State
from creditgrid.core.wire import Activity, Condition, EventView, SweepView
from creditgrid.service.ledger import tables
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.scheduling.scheduler import Scheduler


class Sweeps:
    """Reads from any thread."""

    def __init__(self, ledger: Ledger, scheduler: Scheduler) -> None:
        self._ledger, self._scheduler = ledger, scheduler

    def page(self, state: State | None, after: str | None, limit: int) -> tuple[list[SweepView], str | None]:
        """Sweeps, the newest first, from the one after ``after``; and what to ask for next."""
        query = sa.select(tables.sweeps).order_by(tables.sweeps.c.seq.desc()).limit(limit + 1)
        if state is not None:
            query = query.where(tables.sweeps.c.state == state)
        if after is not None:
            query = query.where(tables.sweeps.c.seq < int(after))
        with self._ledger.read() as connection:
            rows = connection.execute(query).all()
            views = [self._sweep(connection, row, spec=False) for row in rows[:limit]]
        return views, str(rows[limit - 1].seq) if len(rows) > limit else None

    def get(self, sweep: str) -> SweepView:
        """One sweep with its spec.

        Raises:
            NotFoundError: for an unknown sweep.
        """
        with self._ledger.read() as connection:
            return self._sweep(connection, known(connection, sweep), spec=True)

    def events(self, sweep: str, after: int, limit: int) -> list[EventView]:
        """Events with an id above ``after``, in order."""
        query = (
            sa.select(tables.events)
            .where(tables.events.c.sweep == sweep, tables.events.c.id > after)
            .order_by(tables.events.c.id)
            .limit(limit)
        )
        with self._ledger.read() as connection:
            known(connection, sweep)
            return [
                EventView(id=row.id, sweep=row.sweep, at=utc(row.at), type=row.type, data=json.loads(row.data))
                for row in connection.execute(query)
            ]

    def _sweep(self, connection: sa.Connection, row: sa.Row[Any], *, spec: bool) -> SweepView:
        counts = tables.count_cells(connection, row.id)
        stages: dict[str, dict[State, int]] = defaultdict(dict)
        shown = shown_state(tables.stages)
        query = (
            sa.select(tables.tasks.c.kind, shown, sa.func.count())
            .select_from(
                tables.stages.join(tables.tasks, tables.tasks.c.key == tables.stages.c.key).outerjoin(
                    tables.calls, tables.calls.c.id == tables.stages.c.call
                )
            )
            .where(tables.stages.c.sweep == row.id)
            .group_by(tables.tasks.c.kind, shown)
        )
        for kind, state, n in connection.execute(query):
            stages[kind][State(state)] = stages[kind].get(State(state), 0) + n
        state = State(row.state)
        opened = [] if state.finished else tables.open_calls(connection, row.id)
        running = self._scheduler.activities() if opened else {}
        return SweepView(
            id=row.id,
            name=row.name,
            experiment=row.experiment,
            state=state,
            priority=row.priority,
            cells=row.cells,
            counts=counts,
            tasks=dict(stages),
            created_at=utc(row.created_at),
            finished_at=None if row.finished_at is None else utc(row.finished_at),
            remaining_s=0.0 if state.finished else self._eta(connection, opened, running),
            paused=row.paused,
            conditions=self._conditions(row),
            active=[running[call.id][0] for call in opened if call.id in running],
            spec=forms(json.loads(row.spec), json.loads(row.extensions or "[]"))[-1] if spec else None,
        )

    def _conditions(self, row: sa.Row[Any]) -> list[Condition]:
        found = []
        if row.state in OPEN and (problem := self._scheduler.problem()) is not None:
            found.append(Condition(type="degraded", message=problem))
        if row.paused:
            found.append(Condition(type="paused", message="nothing more begins until it is resumed"))
        if row.stopped is not None:
            found.append(Condition(type="stopped", message=row.stopped))
        return found

    def _eta(
        self,
        connection: sa.Connection,
        opened: Sequence[sa.Row[Any]],
        running: Mapping[int, tuple[Activity, float]],
    ) -> float | None:
        """Seconds left: what open calls take by the mean of their kind or by their own progress, over the cores."""
        c = tables.calls.c
        means: dict[str, float] = {
            kind: float(seconds) / max(int(size), 1)
            for kind, seconds, size in connection.execute(
                sa.select(c.kind, sa.func.sum(c.seconds), sa.func.sum(c.size))
                .where(c.state == State.SUCCEEDED, c.seconds.is_not(None))
                .group_by(c.kind)
            )
        }
        total = 0.0
        for call in opened:
            activity, at = running.get(call.id, (None, 0.0))
            if activity is not None and activity.done:
                total += at * (activity.total - activity.done) / activity.done
            elif call.kind in means:
                total += max(0.0, means[call.kind] * call.size - at)
            else:
                return None
        return total / max(1.0, self._scheduler.capacity().cpu)


def known(connection: sa.Connection, sweep: str) -> sa.Row[Any]:
    """The sweep's row.

    Raises:
        NotFoundError: for an unknown sweep.
    """
    row = tables.sweep_row(connection, sweep)
    if row is None:
        raise NotFoundError(f"there is no sweep {sweep!r}")
    return row


def shown_state(table: sa.Table) -> sa.ColumnElement[str]:
    """The state to show: an open cell or stage is at what its call is at."""
    return sa.case(
        (table.c.state != State.PENDING, table.c.state),
        (tables.calls.c.state.in_(OPEN), tables.calls.c.state),
        (tables.calls.c.state.is_(None), State.PENDING.value),
        else_=State.RUNNING.value,  # the call is through and its rows are on their way into the table
    )


def utc(seconds: float) -> datetime:
    """The time of a moment in seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC)
