"""What follows when tasks end: sweeps stop at their failure limit, and finish when no cell is open.

Every function is part of one ledger transaction.
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from creditgrid.core.states import OPEN, State
from creditgrid.service.call_settings import parsed
from creditgrid.service.ledger import transitions
from creditgrid.service.ledger.counts import count_cells
from creditgrid.service.ledger.queries import cancelled_calls, sweep_row
from creditgrid.service.scheduling.in_flight import InFlight


class Completion:
    """Finishes sweeps, and abandons calls in flight that no sweep needs any more."""

    def __init__(self, in_flight: InFlight) -> None:
        self._in_flight = in_flight

    def tasks_ended(self, connection: sa.Connection, sweeps: Iterable[str], *, failed: bool = False) -> None:
        """Tasks that these sweeps need have ended; with ``failed`` a sweep may reach its failure limit."""
        for sweep in sweeps:
            if failed:
                self._limit_failures(connection, sweep)
            transitions.finish_sweep(connection, sweep)

    def planned(self, connection: sa.Connection, sweep: str) -> None:
        """The sweep has a new plan: cells that it shares may have ended, or failed, before it was whole."""
        failed = count_cells(connection, sweep).get(State.FAILED, 0) > 0
        self.tasks_ended(connection, [sweep], failed=failed)

    def stop_sweep(self, connection: sa.Connection, sweep: str, end: State, why: str) -> None:
        """End the sweep early, and cancel what no other sweep needs, also in the runner."""
        transitions.stop_sweep(connection, sweep, end, why)
        for call in cancelled_calls(connection, [submitted.call.id for submitted in self._in_flight]):
            self._in_flight.abandon(call)

    def _limit_failures(self, connection: sa.Connection, sweep: str) -> None:
        row = sweep_row(connection, sweep)
        if row is None or row.state not in OPEN:
            return
        spec = parsed(row.spec)
        if spec.fail_fast:
            self.stop_sweep(connection, sweep, State.FAILED, "fail_fast: stopped at the first failure")
        elif spec.max_failed is not None:
            failed = count_cells(connection, sweep).get(State.FAILED, 0)
            if failed > spec.max_failed:
                why = f"{failed:,} cells failed, max_failed is {spec.max_failed:,}"
                self.stop_sweep(connection, sweep, State.FAILED, why)
