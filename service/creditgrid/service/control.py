"""What users ask of sweeps: submit, cancel, pause, resume, retry, extend. Each is seen at once and whole."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
import structlog

from creditgrid.core.errors import ConflictError, Fault, NotFoundError, SpecError
from creditgrid.core.rows import schema
from creditgrid.core.spec.text import SpecText
from creditgrid.core.states import OPEN, State
from creditgrid.core.wire import Extension, Role
from creditgrid.service.codes import Codes
from creditgrid.service.ledger import transitions
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.queries import cells_in, replayed, sweep_row
from creditgrid.service.people.actor import OPERATOR, Actor
from creditgrid.service.people.audit import record
from creditgrid.service.people.limits import check_plan, check_priority, check_room, within_limit
from creditgrid.service.planning.naming import Header, NamingRequest
from creditgrid.service.planning.plans import Check, Plans, nobody_stops
from creditgrid.service.results.table import Results
from creditgrid.service.scheduling.in_flight import Recall
from creditgrid.service.scheduling.scheduler import Scheduler

RETRIED = (State.FAILED, State.SKIPPED)

log = structlog.get_logger()


class Control:
    """May be called from any thread. It may cancel calls in flight and finish sweeps.

    Each request has an actor; it raises ForbiddenError where the actor's role or limits do not allow it.
    """

    def __init__(self, ledger: Ledger, plans: Plans, results: Results, scheduler: Scheduler, codes: Codes) -> None:
        self._ledger, self._plans, self._results, self._codes = ledger, plans, results, codes
        self._in_flight, self._completion, self._wake = scheduler.in_flight, scheduler.completion, scheduler.wake

    def submit(
        self,
        text: SpecText,
        idempotency: tuple[str, str] | None = None,
        actor: Actor = OPERATOR,
        check: Check = nobody_stops,
    ) -> tuple[str, bool]:
        """Validate, plan and write a sweep, which the actor owns; returns its id and whether it is new.

        Args:
            idempotency: a key that the client chose, and a digest of the request's body: the same pair of the same
                actor returns the first sweep again.
            check: called often, as in ``retry`` and ``extend``; what it raises ends the planning, and nothing is left.

        Raises:
            SpecError: the spec is refused; nothing was written.
            ConflictError: the idempotency key was used with another body.
        """
        actor.require(Role.SUBMIT)
        if idempotency is None:
            return self._submit(text, None, actor, check), True
        if actor.name is not None:
            # Two people may choose the same key. No name of a token has a colon.
            idempotency = f"{actor.name}:{idempotency[0]}", idempotency[1]
        with self._plans.one_at_a_time(f"key {idempotency[0]}", check):
            if (earlier := self._replayed(*idempotency)) is not None:
                return earlier, False
            return self._submit(text, idempotency, actor, check), True

    def _submit(self, text: SpecText, request: tuple[str, str] | None, actor: Actor, check: Check) -> str:
        with self._ledger.read() as connection:
            check_room(connection, actor)
        sweep = f"s{int(time.time()):08x}{secrets.token_hex(4)}"

        def accept(header: Header) -> None:
            check_priority(actor, header.priority)
            self._refuse_misfit(header)

        def publish(connection: sa.Connection, header: Header, cells: int) -> int:
            message = f"{header.name}: {cells:,} cells of {header.experiment}"
            with within_limit(connection, actor):
                transitions.publish_sweep(connection, sweep, message, cells=cells, request=request)
            record(connection, actor, "submit", sweep, f"{message}, priority {header.priority}")
            self._completion.planned(connection, sweep)
            return cells

        total = self._plans.write(
            sweep,
            NamingRequest(text),
            owner=actor.name,
            check=self._within_limit(actor, actor.name, sweep, check),
            accept=accept,
            create=_creates(sweep, actor.name),
            publish=publish,
        )
        self._wake()
        log.info("sweep submitted", sweep=sweep, cells=total)
        return sweep

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

    def retry(self, sweep: str, actor: Actor = OPERATOR, check: Check = nobody_stops) -> int:
        """Run the failed and skipped cells of an ended sweep again; returns their number.

        A sweep that stopped because cells failed runs its cancelled cells as well.

        Raises:
            ConflictError: the sweep runs, or no cell has failed.
        """
        with self._plans.one_at_a_time(sweep, check):
            with self._ledger.read() as connection:
                row = _retried(connection, sweep, actor)
                again = (*RETRIED, State.CANCELLED) if row.state == State.FAILED else RETRIED
                redo = frozenset(cells_in(connection, sweep, again))
                self._check_limits(connection, actor, row)
            if not redo:
                hint = "; submit it again to run what was cancelled" if row.state == State.CANCELLED else ""
                raise ConflictError(f"no cell of sweep {sweep} has failed: there is nothing to retry{hint}")

            def publish(connection: sa.Connection, _: Header, cells: int) -> int:
                _retried(connection, sweep, actor)
                message = f"{cells:,} cells run again"
                with within_limit(connection, actor):
                    transitions.adopt_plan(connection, plan, sweep, "sweep.retried", message)
                record(connection, actor, "retry", sweep, message)
                self._completion.planned(connection, sweep)
                return cells

            plan = f"{sweep}+{secrets.token_hex(4)}"
            self._plans.write(
                plan,
                NamingRequest(row.spec, json.loads(row.extensions or "[]"), only=redo),
                owner=actor.name,
                check=self._within_limit(actor, row.owner, plan, check),
                accept=self._refuse_misfit,
                create=_creates(plan, row.owner),
                publish=publish,
            )
        self._wake()
        return len(redo)

    def extend(self, sweep: str, extension: Extension, actor: Actor = OPERATOR, check: Check = nobody_stops) -> int:
        """Add cells to a running or ended sweep; returns how many are new. The cells it has stay as they are.

        Raises:
            SpecError: the sweep has no such axis, or the new cells make no sense; nothing was changed.
            ConflictError: the sweep was cancelled.
        """
        with self._plans.one_at_a_time(sweep, check):
            with self._ledger.read() as connection:
                row = _extended(connection, sweep, actor)
                self._check_limits(connection, actor, row)
            extensions = json.loads(row.extensions or "[]")
            more = extension.model_dump()

            def publish(connection: sa.Connection, _: Header, cells: int) -> int:
                total = _extended(connection, sweep, actor).cells + cells
                message = f"{cells:,} more cells: {total:,} in all"
                forms = [*extensions, more]
                with within_limit(connection, actor):
                    transitions.adopt_plan(connection, plan, sweep, "sweep.extended", message, extensions=forms)
                record(connection, actor, "extend", sweep, message)
                self._completion.planned(connection, sweep)
                return cells

            plan = f"{sweep}+{secrets.token_hex(4)}"
            added = self._plans.write(
                plan,
                NamingRequest(row.spec, extensions, more),
                owner=actor.name,
                check=self._within_limit(actor, row.owner, plan, check),
                accept=self._refuse_misfit,
                create=_creates(plan, row.owner),
                publish=publish,
            )
        self._wake()
        return added or 0

    @staticmethod
    def _check_limits(connection: sa.Connection, actor: Actor, row: sa.Row[Any]) -> None:
        """Before the actor adds open cells to a sweep; an administrator may add to those of others."""
        if row.owner == actor.name:
            check_priority(actor, row.priority)
            check_room(connection, actor)

    def _within_limit(self, actor: Actor, owner: str | None, plan: str, check: Check) -> Check:
        """A check that also ends a plan which exceeds the actor's limit before it is whole."""
        if actor.limits.open_cells is None or owner != actor.name:
            return check

        def limited() -> None:
            check()
            with self._ledger.read() as connection:
                check_plan(connection, actor, plan)

        return limited

    def _refuse_misfit(self, header: Header) -> None:
        experiment = self._codes.registry(header.code).experiment(header.experiment).measuring(header.measurements)
        if why := self._results.misfit(schema(experiment)):
            raise SpecError([Fault(f"the experiment {experiment.name!r} cannot be used: {why}", "/experiment")])

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


def _retried(connection: sa.Connection, sweep: str, actor: Actor) -> sa.Row[Any]:
    """The sweep, if it may be retried now."""
    row = _own_sweep(connection, sweep, actor)
    if row.state in OPEN:
        raise ConflictError(f"sweep {sweep} is {row.state}: cancel it or wait for its end before a retry")
    return row


def _extended(connection: sa.Connection, sweep: str, actor: Actor) -> sa.Row[Any]:
    """The sweep, if it may be extended now."""
    row = _own_sweep(connection, sweep, actor)
    if row.state == State.CANCELLED:
        raise ConflictError(f"sweep {sweep} was cancelled: submit a new one; it shares what this one computed")
    return row


def _creates(sweep: str, owner: str | None) -> Callable[[sa.Connection, Header], None]:
    """Writes the hidden sweep of a plan."""

    def create(connection: sa.Connection, header: Header) -> None:
        transitions.create_sweep(
            connection,
            sweep,
            name=header.name,
            experiment=header.experiment,
            priority=header.priority,
            document=header.document,
            owner=owner,
        )

    return create
