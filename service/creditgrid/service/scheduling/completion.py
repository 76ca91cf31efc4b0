"""How calls and sweeps end, and what is told of it; every function is a part of one ledger transaction."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
import structlog

from creditgrid.core.fingerprint import canonical_json
from creditgrid.core.states import FINISHED, OPEN, State
from creditgrid.core.wire import TERMINAL_EVENT
from creditgrid.service.ledger import tables
from creditgrid.service.scheduling.call_settings import parsed
from creditgrid.service.scheduling.in_flight import Flights

log = structlog.get_logger()


class Endings:
    """Settles what is through, and ends sweeps when they are."""

    def __init__(self, flights: Flights) -> None:
        self._flights = flights

    def settle(
        self,
        connection: sa.Connection,
        call: int,
        to: State,
        event: str | None = None,
        text: str = "",
        *,
        keys: Iterable[str] | None = None,
        blame: str | None = None,
    ) -> None:
        """End a call's open tasks (all, or these), and tell the sweeps that need them."""
        affected = tables.sweeps_of(connection, call)
        tables.settle_tasks(connection, call, to, keys, blame)
        for sweep in affected:
            if event is not None:
                tell(connection, sweep, event, text, call=call)
            if to is State.FAILED:
                self._limit_failures(connection, sweep)
            self.finish_if_through(connection, sweep)

    def end_early(self, connection: sa.Connection, sweep: str, to: State, why: str) -> None:
        """End a sweep now. Its open cells are cancelled, and with them the calls that no other open sweep needs."""
        for table in (tables.cells, tables.stages):
            connection.execute(
                table.update()
                .where(table.c.sweep == sweep, table.c.state == State.PENDING)
                .values(state=State.CANCELLED)
            )
        ended = {"state": to, "finished_at": time.time(), "stopped": why, "paused": False}
        connection.execute(tables.sweeps.update().where(tables.sweeps.c.id == sweep).values(**ended))
        tables.cancel_unneeded(connection, tables.calls_of(sweep))
        flying = [flight.call.id for flight in self._flights]
        stopped = sa.select(tables.calls.c.id).where(
            tables.calls.c.id.in_(flying), tables.calls.c.state == State.CANCELLED
        )
        for call in connection.scalars(stopped):
            self._flights.abandon(call)
        tables.hand_over(connection, sweep)
        counts = _plain(tables.count_cells(connection, sweep))
        tell(connection, sweep, TERMINAL_EVENT, f"{to}: {why}", state=to, counts=counts)
        log.info("sweep ended", sweep=sweep, state=str(to), why=why)

    def finish_if_through(self, connection: sa.Connection, sweep: str) -> None:
        """End a sweep that has no open cell."""
        if tables.has_open_cells(connection, sweep):
            return
        row = tables.sweep_row(connection, sweep)
        if row is None or row.state in FINISHED:
            return
        counts = tables.count_cells(connection, sweep)
        if counts.get(State.FAILED) or counts.get(State.SKIPPED):
            end = State.FAILED
        elif counts.get(State.CANCELLED):
            end = State.CANCELLED
        elif set(counts) == {State.CACHED}:
            end = State.CACHED
        else:
            end = State.SUCCEEDED
        ended = {"state": end, "finished_at": time.time(), "paused": False}
        connection.execute(tables.sweeps.update().where(tables.sweeps.c.id == sweep).values(**ended))
        tables.hand_over(connection, sweep)  # a call that it shared may begin again
        shown = ", ".join(f"{n:,} {state}" for state, n in sorted(counts.items()))
        tell(connection, sweep, TERMINAL_EVENT, f"{end}: {shown}", state=end, counts=_plain(counts))
        log.info("sweep ended", sweep=sweep, state=str(end), **_plain(counts))

    def _limit_failures(self, connection: sa.Connection, sweep: str) -> None:
        row = tables.sweep_row(connection, sweep)
        if row is None or row.state not in OPEN:
            return
        spec = parsed(row.spec)
        if spec.fail_fast:
            self.end_early(connection, sweep, State.FAILED, "fail_fast: stopped at the first failure")
        elif spec.max_failed is not None:
            failed = tables.count_failed(connection, sweep)
            if failed > spec.max_failed:
                why = f"{failed:,} cells failed, max_failed is {spec.max_failed:,}"
                self.end_early(connection, sweep, State.FAILED, why)


def tell(connection: sa.Connection, sweep: str, event: str, message: str, **data: Any) -> None:
    """Append an event to the sweep's."""
    plain = {name: str(value) if isinstance(value, State) else value for name, value in data.items()}
    tables.add_event(connection, sweep, event, canonical_json({"message": message, **plain}))


def tell_all(connection: sa.Connection, call: int, event: str, message: str, **data: Any) -> None:
    """Append an event to every open sweep that needs the call."""
    for sweep in tables.sweeps_of(connection, call):
        tell(connection, sweep, event, message, call=call, **data)


def _plain(counts: Mapping[State, int]) -> dict[str, int]:
    return {str(state): n for state, n in counts.items()}
