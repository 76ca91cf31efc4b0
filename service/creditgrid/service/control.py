"""What users ask of sweeps: submit, cancel, pause, resume, retry, extend. Each is one ledger transaction."""

from __future__ import annotations

import json
import secrets
import threading
import time
from typing import Any

import sqlalchemy as sa
import structlog

from creditgrid.core.errors import ConflictError, Fault, NotFoundError, SpecError
from creditgrid.core.rows import schema
from creditgrid.core.spec.extension import extended, forms, in_extension
from creditgrid.core.spec.grid import Grid
from creditgrid.core.spec.model import MAX_CELLS
from creditgrid.core.states import OPEN, State
from creditgrid.core.wire import Extension
from creditgrid.service.ledger import tables
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.planning.plan_writer import PlanWriter
from creditgrid.service.planning.planner import Planner
from creditgrid.service.results.table import Results
from creditgrid.service.scheduling.completion import tell
from creditgrid.service.scheduling.in_flight import Recalled
from creditgrid.service.scheduling.scheduler import Scheduler

RETRIED = (State.FAILED, State.SKIPPED)

log = structlog.get_logger()


class Control:
    """May be called from any thread."""

    def __init__(self, ledger: Ledger, planner: Planner, results: Results, scheduler: Scheduler) -> None:
        self._ledger, self._planner, self._results = ledger, planner, results
        self._flights, self._endings, self._wake = scheduler.flights, scheduler.endings, scheduler.wake
        self.planning = threading.Lock()
        """Planning and writing a sweep is one step: two sweeps that share tasks cannot both think they are the first,
        and no artifact that a plan counts on may go meanwhile."""

    def submit(self, document: Any, idempotency: tuple[str, str] | None = None) -> tuple[str, bool]:
        """Validate, plan and write a sweep; returns its id and whether it is new.

        Args:
            idempotency: a key the client chose, and a digest of the request's body: the same pair again returns the
                first sweep.

        Raises:
            SpecError: the spec is refused; nothing was written.
            ConflictError: the idempotency key came before with another body.
        """
        with self.planning:
            if idempotency is not None and (earlier := self._replayed(*idempotency)) is not None:
                return earlier, False
            spec, grid, plan = self._planner.prepare(document)
            self._refuse_misfit(grid)
            sweep = f"s{int(time.time()):08x}{secrets.token_hex(4)}"
            with self._ledger.write() as connection:
                connection.execute(
                    tables.sweeps.insert().values(
                        id=sweep,
                        name=spec.name,
                        experiment=spec.experiment,
                        state=State.PENDING,
                        priority=spec.priority,
                        spec=json.dumps(document),
                        cells=0,
                        created_at=time.time(),
                    )
                )
                if idempotency is not None:
                    connection.execute(
                        tables.idempotency.insert().values(key=idempotency[0], body=idempotency[1], sweep=sweep)
                    )
                total = PlanWriter(connection, sweep).write(plan, plan.cells())
                connection.execute(tables.sweeps.update().where(tables.sweeps.c.id == sweep).values(cells=total))
                tables.claim(connection, sweep)
                tables.begin_if_running(connection, sweep)
                tell(connection, sweep, "sweep.created", f"{spec.name}: {total:,} cells of {spec.experiment}")
                self._endings.finish_if_through(connection, sweep)
        self._wake()
        log.info("sweep submitted", sweep=sweep, name=spec.name, cells=total)
        return sweep, True

    def cancel(self, sweep: str) -> bool:
        """Stop a sweep: finished rows stay, and what another sweep needs runs on; False if it was cancelled before.

        Raises:
            NotFoundError: for an unknown sweep, as all below.
            ConflictError: for a sweep that has ended otherwise.
        """
        with self._ledger.write() as connection:
            row = _sweep(connection, sweep)
            if row.state == State.CANCELLED:
                return False
            _refuse_ended(row, "cancel")
            self._endings.end_early(connection, sweep, State.CANCELLED, "cancelled")
        self._wake()
        return True

    def pause(self, sweep: str) -> bool:
        """Begin no further call of a sweep, apart from what others need; False if it was paused before.

        Raises:
            ConflictError: for a sweep that has ended.
        """
        with self._ledger.write() as connection:
            row = _sweep(connection, sweep)
            _refuse_ended(row, "pause")
            if row.paused:
                return False
            connection.execute(tables.sweeps.update().where(tables.sweeps.c.id == sweep).values(paused=True))
            tables.hand_over(connection, sweep)
            for flight in self._flights.waiting():
                if flight.owner == sweep:  # if another sweep needs it, it begins again in that one's turn
                    self._flights.recall(flight, Recalled.FOR_ANOTHER)
            tell(connection, sweep, "sweep.paused", "paused: what runs ends, and nothing more begins")
        self._wake()
        return True

    def resume(self, sweep: str) -> bool:
        """Let a paused sweep go on; False if it was not paused.

        Raises:
            ConflictError: for a sweep that has ended.
        """
        with self._ledger.write() as connection:
            row = _sweep(connection, sweep)
            _refuse_ended(row, "resume")
            if not row.paused:
                return False
            connection.execute(tables.sweeps.update().where(tables.sweeps.c.id == sweep).values(paused=False))
            tables.claim(connection, sweep)
            tell(connection, sweep, "sweep.resumed", "resumed")
        self._wake()
        return True

    def retry(self, sweep: str) -> int:
        """Begin the failed and skipped cells of an ended sweep anew; returns how many there are.

        A sweep that stopped at its failures begins what it had not got to as well.

        Raises:
            ConflictError: while the sweep runs, or when no cell has failed.
        """
        with self.planning:
            with self._ledger.read() as connection:
                row = _sweep(connection, sweep)
                again = (*RETRIED, State.CANCELLED) if row.state == State.FAILED else RETRIED
                c = tables.cells.c
                redo = set(connection.scalars(sa.select(c.idx).where(c.sweep == sweep, c.state.in_(again))))
            if row.state in OPEN:
                raise ConflictError(f"sweep {sweep} is {row.state}: cancel it or let it end before a retry")
            if not redo:
                hint = "; submit it again to run what was cancelled" if row.state == State.CANCELLED else ""
                raise ConflictError(f"no cell of sweep {sweep} has failed: there is nothing to retry{hint}")
            *earlier, document = _forms(row)
            _, _, plan = self._planner.prepare(document, *earlier)
            with self._ledger.write() as connection:
                self._reopen(connection, sweep)
                PlanWriter(connection, sweep, redo=redo).write(plan, plan.cells(redo))
                tables.claim(connection, sweep)
                tables.begin_if_running(connection, sweep)
                tell(connection, sweep, "sweep.retried", f"{len(redo):,} cells begin anew")
                self._endings.finish_if_through(connection, sweep)
        self._wake()
        return len(redo)

    def extend(self, sweep: str, extension: Extension) -> int:
        """Add cells to a running or ended sweep; those it has stay as they are. Returns how many are new.

        Raises:
            SpecError: for an axis that the sweep does not have, or cells that make no sense; nothing was changed.
            ConflictError: for a cancelled sweep.
        """
        with self.planning:
            with self._ledger.read() as connection:
                row = _sweep(connection, sweep)
                there = list(connection.scalars(sa.select(tables.cells.c.key).where(tables.cells.c.sweep == sweep)))
            if row.state == State.CANCELLED:
                raise _cancelled(sweep)
            earlier = _forms(row)
            document = extended(earlier[-1], extension)
            try:
                _, grid, plan = self._planner.prepare(document, *earlier)
                self._refuse_misfit(grid)
                first = sum(sum(1 for _ in form.cells()) for form in grid.earlier)
                with self._ledger.write() as connection:
                    if _sweep(connection, sweep).state == State.CANCELLED:
                        raise _cancelled(sweep)  # meanwhile
                    writer = PlanWriter(connection, sweep)
                    added = writer.write(plan, plan.cells(range(first, first + MAX_CELLS), besides=there))
                    if not added:
                        return 0
                    self._reopen(connection, sweep)
                    extensions = [*json.loads(row.extensions or "[]"), extension.model_dump()]
                    values = {"extensions": json.dumps(extensions), "cells": len(there) + added}
                    connection.execute(tables.sweeps.update().where(tables.sweeps.c.id == sweep).values(**values))
                    tables.claim(connection, sweep)
                    tables.begin_if_running(connection, sweep)
                    tell(connection, sweep, "sweep.extended", f"{added:,} cells more: {len(there) + added:,} in all")
                    self._endings.finish_if_through(connection, sweep)
            except SpecError as error:
                raise in_extension(error, earlier[-1], extension) from error
        self._wake()
        return added

    def _refuse_misfit(self, grid: Grid) -> None:
        if why := self._results.misfit(schema(grid.experiment)):
            detail = f"the experiment {grid.experiment.name!r} cannot be used: {why}"
            raise SpecError([Fault(detail, "/experiment")])

    def _reopen(self, connection: sa.Connection, sweep: str) -> None:
        """Let an ended sweep go on; an open one stays as it is."""
        ended = tables.sweeps.update().where(tables.sweeps.c.id == sweep, tables.sweeps.c.state.not_in(OPEN))
        connection.execute(ended.values(state=State.PENDING, finished_at=None, stopped=None))

    def _replayed(self, key: str, body: str) -> str | None:
        with self._ledger.read() as connection:
            row = connection.execute(sa.select(tables.idempotency).where(tables.idempotency.c.key == key)).one_or_none()
        if row is None:
            return None
        if row.body != body:
            raise ConflictError(f"the idempotency key {key!r} came before with another body: choose a new key")
        return str(row.sweep)


def _sweep(connection: sa.Connection, sweep: str) -> sa.Row[Any]:
    row = tables.sweep_row(connection, sweep)
    if row is None:
        raise NotFoundError(f"there is no sweep {sweep!r}")
    return row


def _refuse_ended(row: sa.Row[Any], request: str) -> None:
    if row.state not in OPEN:
        raise ConflictError(f"sweep {row.id} has ended ({row.state}): there is nothing to {request}")


def _cancelled(sweep: str) -> ConflictError:
    return ConflictError(f"sweep {sweep} was cancelled: submit a new one; it shares what this one computed")


def _forms(row: sa.Row[Any]) -> list[Any]:
    """The sweep's spec, in each form that it had."""
    return forms(json.loads(row.spec), json.loads(row.extensions or "[]"))
