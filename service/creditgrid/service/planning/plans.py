"""The plans that are being made: each is queued, named and written, and can be stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

import sqlalchemy as sa
import structlog

from creditgrid.core.errors import BusyError, Fault, NotFoundError, PlanCancelled, SpecError
from creditgrid.core.spec.text import SpecText
from creditgrid.core.wire import PlanView, SubmissionView
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.queries import hidden_plans, keys_to_keep
from creditgrid.service.planning.naming import Header, NamingRequest
from creditgrid.service.planning.plan_queue import PlanQueue
from creditgrid.service.planning.plan_writer import PlanWriter, discard
from creditgrid.service.planning.planner import Planner
from creditgrid.service.planning.read_ahead import ReadAhead

Published = TypeVar("Published")
Check = Callable[[], None]

POLL_S = 0.1
LONGEST_PLAN_S = 1800.0
"""Seconds that a plan may take, with its wait for a slot; a million cells take about a minute."""

log = structlog.get_logger()


@dataclass(slots=True)
class _Underway:
    """A plan that is being made; ``stop`` is the error that ends it."""

    owner: str | None
    name: str = ""
    most: int | None = None
    started: float = field(default_factory=time.time)
    writer: PlanWriter | None = None
    stop: Exception | None = None


def nobody_stops() -> None:
    """A check that never raises."""


class Plans:
    """May be used from any thread; a plan takes a thread until it is written."""

    def __init__(self, ledger: Ledger, planner: Planner) -> None:
        self._ledger, self._planner = ledger, planner
        self._queue = PlanQueue()
        self._guard = threading.Lock()
        self._underway: dict[str, _Underway] = {}
        self._locked: set[str] = set()
        self._stopping = False
        self.writing = threading.Lock()
        """Held while a part of a plan is looked up and written: no artifact that it counts on is removed meanwhile."""

    def start(self) -> None:
        """Undo, in the background, the plans that a crash interrupted."""
        with self._ledger.read() as connection:
            interrupted = hidden_plans(connection)
        threading.Thread(target=self._undo, args=(interrupted,), name="creditgrid-undo", daemon=True).start()

    def stop(self) -> None:
        """End all plans. What they have written is undone at the next start."""
        with self._guard:
            self._stopping = True
            for underway in self._underway.values():
                underway.stop = _stopping()

    def view(self, text: SpecText, owner: str | None, check: Check) -> PlanView:
        """A dry run of a spec, see ``Planner.plan``.

        Args:
            owner: who asks.
            check: called often; what it raises ends the plan.
        """
        with self._queue.slot(owner, check) as sized:
            return self._planner.plan(text, check, sized)

    def write(
        self,
        sweep: str,
        request: NamingRequest,
        *,
        owner: str | None,
        check: Check,
        accept: Callable[[Header], None],
        create: Callable[[sa.Connection, Header], None],
        publish: Callable[[sa.Connection, Header, int], Published],
    ) -> Published | None:
        """Make a plan and write it; returns what ``publish`` returns, or None if the plan has no cell.

        Args:
            sweep: the id of the hidden sweep.
            owner: whose plan it is.
            check: called often; what it raises ends the plan.
            accept: raises if the spec cannot be run here.
            create: writes the hidden sweep, in the first transaction.
            publish: shows the plan, in the last one; takes the number of cells. What it raises undoes the plan.

        Raises:
            SpecError: the spec is refused; nothing is left of the plan.
            PlanCancelled: somebody has cancelled the plan.
            BusyError: the service stops.
        """
        underway = _Underway(owner)

        abandoned = threading.Event()

        def checked() -> None:
            check()
            if abandoned.is_set():  # the writer has met an error of its own
                raise PlanCancelled("the plan has ended")
            if underway.stop is not None:
                raise underway.stop
            if time.time() - underway.started > LONGEST_PLAN_S:
                raise SpecError([Fault(f"planning took longer than {LONGEST_PLAN_S:g} s: split the sweep", "")])

        with self._guard:
            if self._stopping:
                raise _stopping()
            self._underway[sweep] = underway
        writer = underway.writer = PlanWriter(self._ledger, self.writing, self._planner.look_up, sweep, checked)
        try:
            with (
                self._queue.slot(owner, checked) as sized,
                self._planner.name(request, checked) as (header, chunks),
                ReadAhead(chunks, abandoned) as ahead,
            ):
                underway.name, underway.most = header.name, header.cells
                accept(header)
                sized(header.cells)
                return writer.write(
                    ahead,
                    lambda connection: create(connection, header),
                    lambda connection, cells: publish(connection, header, cells),
                )
        except BaseException:
            if not self._stopping:
                writer.discard()
            raise
        finally:
            with self._guard:
                del self._underway[sweep]

    def underway(self) -> list[SubmissionView]:
        """The plans that are being made, the oldest first."""
        with self._guard:
            found = list(self._underway.items())
        return [
            SubmissionView(
                id=sweep,
                name=plan.name,
                owner=plan.owner,
                cells=0 if plan.writer is None else plan.writer.cells,
                most_cells=plan.most,
                created_at=datetime.fromtimestamp(plan.started, UTC),
            )
            for sweep, plan in found
        ]

    def cancel(self, sweep: str, allow: Callable[[str | None], None]) -> None:
        """Stop a plan; what it has written is undone.

        Args:
            allow: takes the plan's owner; raises if the plan may not be stopped.

        Raises:
            NotFoundError: no such plan is being made.
        """
        with self._guard:
            underway = self._underway.get(sweep)
            if underway is None:
                raise NotFoundError(f"no submission {sweep!r} is being planned")
            allow(underway.owner)
            underway.stop = PlanCancelled(f"the planning of {sweep} was cancelled: nothing of it is left")

    @contextmanager
    def one_at_a_time(self, name: str, check: Check) -> Iterator[None]:
        """Wait until nobody else has this name, and hold it.

        Args:
            check: called often; what it raises ends the wait.
        """
        while True:
            with self._guard:
                if name not in self._locked:
                    self._locked.add(name)
                    break
            check()
            time.sleep(POLL_S)
        try:
            yield
        finally:
            with self._guard:
                self._locked.discard(name)

    def _undo(self, interrupted: list[str]) -> None:
        for plan in interrupted:
            with self._ledger.read() as connection:
                kept = keys_to_keep(connection, plan)
            discard(self._ledger, plan, kept)
            log.info("undid a plan that was interrupted", sweep=plan)


def _stopping() -> BusyError:
    return BusyError("the service is stopping: try again once it is back")
