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
from creditgrid.core.wire import Extension, Role
from creditgrid.service.ledger import transitions
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.queries import cell_keys, cells_in, replayed, sweep_row
from creditgrid.service.people.actor import OPERATOR, Actor
from creditgrid.service.people.audit import record
from creditgrid.service.people.limits import check_priority, check_room, within_limit
from creditgrid.service.planning.plan_writer import PlanWriter
from creditgrid.service.planning.planner import Planner
from creditgrid.service.results.table import Results
from creditgrid.service.scheduling.in_flight import Recall
from creditgrid.service.scheduling.scheduler import Scheduler

RETRIED = (State.FAILED, State.SKIPPED)

log = structlog.get_logger()


class Control:
    """May be called from any thread. It may cancel calls in flight and finish sweeps.

    Each request has an actor; it raises ForbiddenError where the actor's role or limits do not allow it.
    """

    def __init__(self, ledger: Ledger, planner: Planner, results: Results, scheduler: Scheduler) -> None:
        self._ledger, self._planner, self._results = ledger, planner, results
        self._in_flight, self._completion, self._wake = scheduler.in_flight, scheduler.completion, scheduler.wake
        self.planning = threading.Lock()
        """Held while a sweep is planned and written: two sweeps that share tasks cannot both plan them as new, and no
        artifact that a plan relies on is removed meanwhile."""

    def submit(
        self, document: Any, idempotency: tuple[str, str] | None = None, actor: Actor = OPERATOR
    ) -> tuple[str, bool]:
        """Validate, plan and write a sweep, which the actor owns; returns its id and whether it is new.

        Args:
            idempotency: a key that the client chose, and a digest of the request's body: the same pair of the same
                actor returns the first sweep again.

        Raises:
            SpecError: the spec is refused; nothing was written.
            ConflictError: the idempotency key was used with another body.
        """
        actor.require(Role.SUBMIT)
        if idempotency is not None and actor.name is not None:
            # Two people may choose the same key. No name of a token has a colon.
            idempotency = f"{actor.name}:{idempotency[0]}", idempotency[1]
        with self.planning:
            if idempotency is not None and (earlier := self._replayed(*idempotency)) is not None:
                return earlier, False
            with self._ledger.read() as connection:
                check_room(connection, actor)
            grid, plan = self._planner.prepare(document)
            spec = grid.spec
            check_priority(actor, spec.priority)
            self._refuse_misfit(grid)
            sweep = f"s{int(time.time()):08x}{secrets.token_hex(4)}"
            with self._ledger.write() as connection, within_limit(connection, actor):
                transitions.create_sweep(
                    connection,
                    sweep,
                    name=spec.name,
                    experiment=spec.experiment,
                    priority=spec.priority,
                    document=document,
                    owner=actor.name,
                    request=idempotency,
                )
                total = PlanWriter(connection, sweep).write(plan, plan.cells())
                message = f"{spec.name}: {total:,} cells of {spec.experiment}"
                transitions.plan_sweep(connection, sweep, "sweep.created", message, cells=total)
                record(connection, actor, "submit", sweep, f"{message}, priority {spec.priority}")
                transitions.finish_sweep(connection, sweep)
        self._wake()
        log.info("sweep submitted", sweep=sweep, name=spec.name, cells=total)
        return sweep, True

    def cancel(self, sweep: str, actor: Actor = OPERATOR) -> bool:
        """Stop a sweep; False if it was cancelled before. Its rows stay, and what another sweep needs continues.

        Raises:
            NotFoundError: for an unknown sweep, as in all methods below.
            ConflictError: the sweep has ended in another way.
        """
        with self._ledger.write() as connection:
            if _own_sweep(connection, sweep, actor).state == State.CANCELLED:
                return False
            _open_sweep(connection, sweep, actor, "cancel")
            self._completion.stop_sweep(connection, sweep, State.CANCELLED, "cancelled")
            record(connection, actor, "cancel", sweep)
        self._wake()
        return True

    def pause(self, sweep: str, actor: Actor = OPERATOR) -> bool:
        """Start no further call of a sweep, except those that others need; False if it was paused before.

        Raises:
            ConflictError: the sweep has ended.
        """
        with self._ledger.write() as connection:
            if _open_sweep(connection, sweep, actor, "pause").paused:
                return False
            transitions.pause_sweep(connection, sweep)
            record(connection, actor, "pause", sweep)
            for call in self._in_flight.waiting():
                if call.owner == sweep:  # if another sweep needs the call, that sweep owns and submits it
                    self._in_flight.recall(call, Recall.NOT_STARTED)
        self._wake()
        return True

    def resume(self, sweep: str, actor: Actor = OPERATOR) -> bool:
        """Let a paused sweep continue; False if it was not paused.

        Raises:
            ConflictError: the sweep has ended.
        """
        with self._ledger.write() as connection:
            if not _open_sweep(connection, sweep, actor, "resume").paused:
                return False
            transitions.resume_sweep(connection, sweep)
            record(connection, actor, "resume", sweep)
        self._wake()
        return True

    def retry(self, sweep: str, actor: Actor = OPERATOR) -> int:
        """Run the failed and skipped cells of an ended sweep again; returns their number.

        A sweep that stopped because cells failed runs its cancelled cells as well.

        Raises:
            ConflictError: the sweep runs, or no cell has failed.
        """
        with self.planning:
            with self._ledger.read() as connection:
                row = _own_sweep(connection, sweep, actor)
                again = (*RETRIED, State.CANCELLED) if row.state == State.FAILED else RETRIED
                redo = cells_in(connection, sweep, again)
                self._check_limits(connection, actor, row)
            if row.state in OPEN:
                raise ConflictError(f"sweep {sweep} is {row.state}: cancel it or wait for its end before a retry")
            if not redo:
                hint = "; submit it again to run what was cancelled" if row.state == State.CANCELLED else ""
                raise ConflictError(f"no cell of sweep {sweep} has failed: there is nothing to retry{hint}")
            *earlier, document = _forms(row)
            _, plan = self._planner.prepare(document, *earlier)
            with self._ledger.write() as connection, within_limit(connection, actor):
                transitions.reopen_sweep(connection, sweep)
                PlanWriter(connection, sweep, redo=redo).write(plan, plan.cells(redo))
                message = f"{len(redo):,} cells run again"
                transitions.plan_sweep(connection, sweep, "sweep.retried", message, cells=row.cells)
                record(connection, actor, "retry", sweep, message)
                transitions.finish_sweep(connection, sweep)
        self._wake()
        return len(redo)

    def extend(self, sweep: str, extension: Extension, actor: Actor = OPERATOR) -> int:
        """Add cells to a running or ended sweep; returns how many are new. The cells it has stay as they are.

        Raises:
            SpecError: the sweep has no such axis, or the new cells make no sense; nothing was changed.
            ConflictError: the sweep was cancelled.
        """
        with self.planning:
            with self._ledger.read() as connection:
                row = _own_sweep(connection, sweep, actor)
                existing = cell_keys(connection, sweep)
                self._check_limits(connection, actor, row)
            if row.state == State.CANCELLED:
                raise _cancelled(sweep)
            earlier = _forms(row)
            document = extended(earlier[-1], extension)
            try:
                grid, plan = self._planner.prepare(document, *earlier)
                self._refuse_misfit(grid)
                first = sum(sum(1 for _ in form.cells()) for form in grid.earlier)
                with self._ledger.write() as connection, within_limit(connection, actor):
                    if _sweep(connection, sweep).state == State.CANCELLED:  # meanwhile
                        raise _cancelled(sweep)
                    writer = PlanWriter(connection, sweep)
                    added = writer.write(plan, plan.cells(range(first, first + MAX_CELLS), besides=existing))
                    if not added:
                        return 0
                    transitions.reopen_sweep(connection, sweep)
                    total = len(existing) + added
                    message = f"{added:,} more cells: {total:,} in all"
                    extensions = [*json.loads(row.extensions or "[]"), extension.model_dump()]
                    transitions.plan_sweep(
                        connection, sweep, "sweep.extended", message, cells=total, extensions=extensions
                    )
                    record(connection, actor, "extend", sweep, message)
                    transitions.finish_sweep(connection, sweep)
            except SpecError as error:
                raise in_extension(error, earlier[-1], extension) from error
        self._wake()
        return added

    @staticmethod
    def _check_limits(connection: sa.Connection, actor: Actor, row: sa.Row[Any]) -> None:
        """Before the actor adds open cells to a sweep; an administrator may add to those of others."""
        if row.owner == actor.name:
            check_priority(actor, row.priority)
            check_room(connection, actor)

    def _refuse_misfit(self, grid: Grid) -> None:
        if why := self._results.misfit(schema(grid.experiment)):
            detail = f"the experiment {grid.experiment.name!r} cannot be used: {why}"
            raise SpecError([Fault(detail, "/experiment")])

    def _replayed(self, key: str, body: str) -> str | None:
        with self._ledger.read() as connection:
            row = replayed(connection, key)
        if row is None:
            return None
        if row.body != body:
            raise ConflictError("the idempotency key was used with another body: choose a new key")
        return str(row.sweep)


def _sweep(connection: sa.Connection, sweep: str) -> sa.Row[Any]:
    row = sweep_row(connection, sweep)
    if row is None:
        raise NotFoundError(f"there is no sweep {sweep!r}")
    return row


def _own_sweep(connection: sa.Connection, sweep: str, actor: Actor) -> sa.Row[Any]:
    row = _sweep(connection, sweep)
    actor.require(Role.SUBMIT)
    actor.require_owner(sweep, row.owner)
    return row


def _open_sweep(connection: sa.Connection, sweep: str, actor: Actor, request: str) -> sa.Row[Any]:
    row = _own_sweep(connection, sweep, actor)
    if row.state not in OPEN:
        raise ConflictError(f"sweep {sweep} has ended ({row.state}): there is nothing to {request}")
    return row


def _cancelled(sweep: str) -> ConflictError:
    return ConflictError(f"sweep {sweep} was cancelled: submit a new one; it shares what this one computed")


def _forms(row: sa.Row[Any]) -> list[Any]:
    """The sweep's spec as it was submitted, and after each extension."""
    return forms(json.loads(row.spec), json.loads(row.extensions or "[]"))
