"""The read side: what the ledger holds, as the models that go over HTTP."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from creditgrid.core.errors import NotFoundError, PluginError
from creditgrid.core.experiments.registry import registry
from creditgrid.core.spec.extension import forms
from creditgrid.core.states import OPEN, State
from creditgrid.core.wire import (
    Activity,
    CellView,
    Condition,
    EventView,
    FailureView,
    SummaryView,
    SweepView,
    TaskDocument,
    TaskView,
    VerdictView,
)
from creditgrid.service.ledger import tables
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.results.table import Results
from creditgrid.service.scheduling.call_settings import parsed, resources
from creditgrid.service.scheduling.scheduler import Scheduler

NUMBER = re.compile(r"\d+(\.\d+)?")
FAILURES_SHOWN = 100
"""Distinct causes that a sweep's failures are grouped into, the most frequent first."""


class Views:
    """Reads for any thread; nothing here changes a state."""

    def __init__(self, ledger: Ledger, results: Results, scheduler: Scheduler) -> None:
        self._ledger, self._results, self._scheduler = ledger, results, scheduler

    def sweeps(self, state: State | None, after: str | None, limit: int) -> tuple[list[SweepView], str | None]:
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

    def sweep(self, sweep: str) -> SweepView:
        """One sweep with its spec.

        Raises:
            NotFoundError: for an unknown sweep, as all below.
        """
        with self._ledger.read() as connection:
            return self._sweep(connection, self._row(connection, sweep), spec=True)

    def cells(self, sweep: str, state: State | None, after: int, limit: int) -> tuple[list[CellView], int | None]:
        """Cells with an index above ``after``, in order; and what to ask for next."""
        shown = _open_state(tables.cells)
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
            self._row(connection, sweep)
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

    def tasks(self, sweep: str, state: State | None, after: str, limit: int) -> tuple[list[TaskView], str | None]:
        """The stages of a sweep with a key above ``after``, in order of their keys; and what to ask for next."""
        shown = _open_state(tables.stages)
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
            self._row(connection, sweep)
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

    def failures(self, sweep: str) -> list[FailureView]:
        """What failed by cause, the most frequent first; messages that differ in numbers alone are of one cause."""
        with self._ledger.read() as connection:
            self._row(connection, sweep)
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

    def events(self, sweep: str, after: int, limit: int) -> list[EventView]:
        """Events with an id above ``after``, in order."""
        query = (
            sa.select(tables.events)
            .where(tables.events.c.sweep == sweep, tables.events.c.id > after)
            .order_by(tables.events.c.id)
            .limit(limit)
        )
        with self._ledger.read() as connection:
            self._row(connection, sweep)
            return [
                EventView(id=row.id, sweep=row.sweep, at=_time(row.at), type=row.type, data=json.loads(row.data))
                for row in connection.execute(query)
            ]

    def summary(self, sweep: str) -> SummaryView:
        """The experiment's own summary of the rows there are."""
        view = self.sweep(sweep)
        experiment = registry().experiment(view.experiment)
        rows: list[dict[str, Any]] = []
        dataset = self._results.dataset()
        if dataset is not None:
            keys = self.cell_index(sweep)["cell"]
            names = [*experiment.params.model_fields, *experiment.columns, "cell", "diverged"]
            present = [name for name in names if name in dataset.schema.names]
            of_experiment = pc.field("experiment") == view.experiment
            found = dataset.to_table(columns=present, filter=of_experiment)
            rows = found.filter(pc.is_in(found["cell"], value_set=keys.combine_chunks())).to_pylist()
        try:
            summary = experiment.summarise(rows)
        except Exception as error:
            raise PluginError(f"{experiment.name}: summarise() raised {type(error).__name__}: {error}") from error
        return SummaryView(
            sweep=sweep,
            title=summary.title,
            columns=list(summary.columns),
            rows=[dict(row) for row in summary.rows],
            verdicts=[
                VerdictView(name=v.name, text=v.text, numbers=dict(v.numbers), warning=v.warning)
                for v in summary.verdicts
            ],
            complete=sum(n for state, n in view.counts.items() if state in (State.SUCCEEDED, State.CACHED))
            == view.cells,
        )

    def cell_index(self, sweep: str) -> pa.Table:
        """The sweep's cells in order: ``idx`` and ``cell``."""
        query = (
            sa.select(tables.cells.c.idx, tables.cells.c.key)
            .where(tables.cells.c.sweep == sweep)
            .order_by(tables.cells.c.idx)
        )
        with self._ledger.read() as connection:
            self._row(connection, sweep)
            rows = connection.execute(query).all()
        return _table({"idx": pa.int64(), "cell": pa.string()}, rows)

    def cells_table(self) -> pa.Table:
        """Every sweep's cells: ``sweep``, ``idx``, ``cell``, ``state``."""
        query = sa.select(
            tables.cells.c.sweep, tables.cells.c.idx, tables.cells.c.key, _open_state(tables.cells)
        ).select_from(tables.cells.outerjoin(tables.calls, tables.calls.c.id == tables.cells.c.call))
        with self._ledger.read() as connection:
            rows = connection.execute(query).all()
        return _table({"sweep": pa.string(), "idx": pa.int64(), "cell": pa.string(), "state": pa.string()}, rows)

    def sweeps_table(self) -> pa.Table:
        """Every sweep: ``id``, ``name``, ``experiment``, ``state``, ``cells``, ``created_at``, ``finished_at``."""
        stamp = pa.timestamp("us", tz="UTC")
        names = {
            "id": pa.string(),
            "name": pa.string(),
            "experiment": pa.string(),
            "state": pa.string(),
            "cells": pa.int64(),
            "created_at": stamp,
            "finished_at": stamp,
        }
        with self._ledger.read() as connection:
            rows = connection.execute(
                sa.select(*(tables.sweeps.c[name] for name in names)).order_by(tables.sweeps.c.seq)
            ).all()
        timed = [(*row[:5], *(None if at is None else _time(at) for at in row[5:])) for row in rows]
        return _table(names, timed)

    def _sweep(self, connection: sa.Connection, row: sa.Row[Any], *, spec: bool) -> SweepView:
        counts = tables.count_cells(connection, row.id)
        stages: dict[str, dict[State, int]] = defaultdict(dict)
        shown = _open_state(tables.stages)
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
            created_at=_time(row.created_at),
            finished_at=None if row.finished_at is None else _time(row.finished_at),
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

    def _row(self, connection: sa.Connection, sweep: str) -> sa.Row[Any]:
        row = tables.sweep_row(connection, sweep)
        if row is None:
            raise NotFoundError(f"there is no sweep {sweep!r}")
        return row

    def task(self, key: str) -> TaskDocument:
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


def _open_state(table: sa.Table) -> sa.ColumnElement[str]:
    """The state to show: an open cell or stage is at what its call is at."""
    return sa.case(
        (table.c.state != State.PENDING, table.c.state),
        (tables.calls.c.state.in_(OPEN), tables.calls.c.state),
        (tables.calls.c.state.is_(None), State.PENDING.value),
        else_=State.RUNNING.value,  # the call is through and its rows are on their way into the table
    )


def _cause(call: sa.Row[Any]) -> str:
    return (call.error or "failed").splitlines()[0]


def _why(state: State, error: str | None) -> str | None:
    if state is State.FAILED:
        return (error or "failed").splitlines()[0]
    return "a task that it needs has no result" if state is State.SKIPPED else None


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _table(columns: dict[str, pa.DataType], rows: Sequence[Sequence[Any]]) -> pa.Table:
    arrays = [pa.array([row[i] for row in rows], kind) for i, kind in enumerate(columns.values())]
    return pa.table(arrays, names=list(columns))
