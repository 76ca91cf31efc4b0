"""Sweeps as users see them: state, counts, time left, and events. No read grows with the size of a sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from creditgrid.core.errors import ArtifactError, NotFoundError
from creditgrid.core.experiment import Experiment
from creditgrid.core.spec.extension import forms
from creditgrid.core.states import OPEN, State
from creditgrid.core.wire import Activity, Condition, EventView, SweepCode, SweepView
from creditgrid.service.call_settings import parsed_resources
from creditgrid.service.codes import Codes
from creditgrid.service.ledger import tables
from creditgrid.service.ledger.counts import backlogs, count_all, count_open, open_needs
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.tables import CELLS, sweeps
from creditgrid.service.prediction.forecast import Forecasts, InProgress, alike_of
from creditgrid.service.scheduling.scheduler import Scheduler

ROWS_AT_ONCE = 1000
"""Rows of the ledger that are read at a time, where there may be millions."""
_LISTED = [column for column in sweeps.c if column.name not in ("spec", "extensions")]  # these have megabytes


@dataclass(frozen=True, slots=True)
class _Now:
    """What the views of one request share."""

    activities: Mapping[int, tuple[Activity, float]]  # the running calls, with the seconds that each has run
    needs: Mapping[str, Mapping[int, Mapping[str, int]]]  # open tasks in them, by sweep, call and kind
    counts: Mapping[str, Mapping[str, Mapping[State, int]]]  # by sweep, kind and state
    backlogs: Mapping[str, Sequence[sa.Row[Any]]]  # by sweep
    running: Mapping[int, InProgress]
    problem: str | None


class Sweeps:
    """Reads from any thread."""

    def __init__(self, ledger: Ledger, scheduler: Scheduler, forecasts: Forecasts, codes: Codes) -> None:
        self._ledger, self._scheduler, self._forecasts, self._codes = ledger, scheduler, forecasts, codes

    def page(
        self, state: State | None, after: int | None, limit: int, owner: str | None = None
    ) -> tuple[list[SweepView], int | None]:
        """Sweeps without their specs, the newest first, after the position ``after``; and the next page's ``after``."""
        query = sa.select(*_LISTED).where(sweeps.c.planned).order_by(sweeps.c.seq.desc()).limit(limit + 1)
        if state is not None:
            query = query.where(sweeps.c.state == state)
        if owner is not None:
            query = query.where(sweeps.c.owner == owner)
        if after is not None:
            query = query.where(sweeps.c.seq < after)
        with self._ledger.read() as connection:
            rows = connection.execute(query).all()
            shown = rows[:limit]
            now = self._now(connection, [row.id for row in shown])
        return [self._view(row, now) for row in shown], shown[-1].seq if len(rows) > limit else None

    def get(self, sweep: str) -> SweepView:
        """One sweep with its spec.

        Raises:
            NotFoundError: for an unknown sweep.
        """
        with self._ledger.read() as connection:
            row = known_sweep(connection, sweep, *sweeps.c)
            now = self._now(connection, [sweep])
        view = self._view(row, now)
        spec = forms(json.loads(row.spec), json.loads(row.extensions or "[]"))[-1]
        return view.model_copy(update={"spec": spec, "code": self._code(spec.get("code"))})

    def _code(self, sha256: str | None) -> SweepCode | None:
        if sha256 is None:
            return None
        try:
            return self._codes.of_sweep(sha256)
        except (NotFoundError, ArtifactError):  # its artifact is gone; the sweep itself is still there
            return SweepCode(sha256=sha256, key="", file="", units=[])

    def is_settled(self, sweep: str) -> bool:
        """Whether nothing of the sweep changes until it is retried or extended: it has ended, and so have its tasks.

        Raises:
            NotFoundError: for an unknown sweep.
        """
        with self._ledger.read() as connection:
            state = State(known_sweep(connection, sweep, sweeps.c.state).state)
            counts = count_all(connection, [sweep])[sweep].values()
        return state.finished and not any(by_state.keys() & set(OPEN) for by_state in counts)

    def open_totals(self) -> tuple[dict[State, int], dict[State, int]]:
        """Open sweeps by state, and their cells by state."""
        state = sweeps.c.state
        query = sa.select(state, sa.func.count()).where(state.in_(OPEN), sweeps.c.planned).group_by(state)
        with self._ledger.read() as connection:
            return {State(state): n for state, n in connection.execute(query)}, count_open(connection)

    def events(self, sweep: str, after: int, limit: int) -> list[EventView]:
        """Events with an id above ``after``, in order.

        Raises:
            NotFoundError: for an unknown sweep.
        """
        c = tables.events.c
        query = sa.select(tables.events).where(c.sweep == sweep, c.id > after).order_by(c.id).limit(limit)
        with self._ledger.read() as connection:
            known_sweep(connection, sweep)
            rows = connection.execute(query).all()
        return [
            EventView(id=row.id, sweep=row.sweep, at=utc(row.at), type=row.type, data=json.loads(row.data))
            for row in rows
        ]

    def _now(self, connection: sa.Connection, ids: Sequence[str]) -> _Now:
        activities = self._scheduler.activities()
        self._forecasts.throughput.refresh(connection)
        return _Now(
            activities,
            open_needs(connection, ids, sorted(activities)),
            count_all(connection, ids),
            backlogs(connection, ids),
            self._scheduler.running(),
            self._scheduler.problem(),
        )

    def _view(self, row: sa.Row[Any], now: _Now) -> SweepView:
        finished = State(row.state).finished
        return _view(row, now, 0.0 if finished else self._time_left(row, now))

    def _time_left(self, row: sa.Row[Any], now: _Now) -> float | None:
        """Seconds left, of the calls that the sweep needs alone."""
        needed = now.needs.get(row.id, {})
        running = [now.running[call] for call in needed if call in now.running]
        alike = [alike_of(found) for found in now.backlogs.get(row.id, ())]
        return self._forecasts.left(alike, running, parsed_resources(row.resources))


def code_of(view: SweepView) -> str | None:
    """The SHA-256 of the code that the sweep brings."""
    return None if view.code is None else view.code.sha256


def measuring(codes: Codes, view: SweepView) -> Experiment:
    """The sweep's experiment, with the units of its code and the columns of its measurements.

    Raises:
        CreditGridError: the experiment is not installed, or the code is gone.
        ValueError: a measurement is not there.
    """
    asked = (view.spec or {}).get("measurements") or ()
    return codes.registry(code_of(view)).experiment(view.experiment).measuring(asked)


def is_settled(view: SweepView) -> bool:
    """Whether the view changes only with the sweep itself; tasks that other sweeps need may outlast it."""
    return view.state.finished and not any(by_state.keys() & set(OPEN) for by_state in view.tasks.values())


def _view(row: sa.Row[Any], now: _Now, remaining_s: float | None) -> SweepView:
    state, counts, needs = State(row.state), now.counts[row.id], now.needs.get(row.id, {})
    running = [] if state.finished else sorted(needs)
    return SweepView(
        id=row.id,
        name=row.name,
        experiment=row.experiment,
        state=state,
        priority=row.priority,
        cells=row.cells,
        owner=row.owner,
        counts=counts.get(CELLS, {}),
        tasks={kind: by_state for kind, by_state in counts.items() if kind != CELLS},
        created_at=utc(row.created_at),
        finished_at=None if row.finished_at is None else utc(row.finished_at),
        remaining_s=remaining_s,
        paused=row.paused,
        conditions=_conditions(row, now.problem),
        active=[now.activities[call][0] for call in running],
    )


def _conditions(row: sa.Row[Any], problem: str | None) -> list[Condition]:
    conditions = []
    if row.state in OPEN and problem is not None:
        conditions.append(Condition(type="degraded", message=problem))
    if row.paused:
        conditions.append(Condition(type="paused", message="no further call starts until it is resumed"))
    if row.stopped is not None:
        conditions.append(Condition(type="stopped", message=row.stopped))
    return conditions


def known_sweep(connection: sa.Connection, sweep: str, *columns: sa.ColumnElement[Any]) -> sa.Row[Any]:
    """These columns of the sweep, or its experiment.

    Raises:
        NotFoundError: for an unknown sweep.
    """
    query = sa.select(*(columns or (sweeps.c.experiment,))).where(sweeps.c.id == sweep, sweeps.c.planned)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no sweep {sweep!r}")
    return row


def shown_state(table: sa.FromClause) -> sa.ColumnElement[str]:
    """The state to show: an open cell or stage has the state of its call."""
    opened = sa.func.coalesce(tables.calls.c.state, table.c.state)
    return sa.case((table.c.state == State.PENDING, opened), else_=table.c.state)


def utc(seconds: float) -> datetime:
    """The time of a moment in seconds since 1970."""
    return datetime.fromtimestamp(seconds, UTC)
