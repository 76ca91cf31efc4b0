"""What becomes of a call that failed: it is tried again, waits for an input to be made again, is split, or ends.

The machine may be to blame (a lost worker, memory, I/O): then there is another attempt after a pause that doubles, up
to the spec's ``retry.max``. A call whose process died is suspect. From the second such crash on, a call of several
tasks is split, so that the third crash of the guilty one fails it alone. The loss of a whole cluster counts little
against what ran on it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
import structlog

from creditgrid.core.errors import ArtifactError
from creditgrid.core.states import OPEN, State
from creditgrid.service.ledger import tables
from creditgrid.service.ledger.tables import LONGEST_PAUSE_S
from creditgrid.service.scheduling.completion import Endings, tell_all
from creditgrid.service.scheduling.in_flight import Flight, Recalled
from creditgrid.service.scheduling.recompute import CannotHeal, make_again
from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.runner import Call, Failed

CRASHES = 3
"""The crash of a task that fails it."""
LOSSES = 10
"""The loss of the cluster, or of an input, that fails the call: it may be the reason."""
PIECES = 32
"""Calls that a suspect one is split into at most."""
SUSPECTS = 512
"""Open suspect calls of a sweep; with more of them no single task is guilty, and nothing is split any further."""
TEXT_KEPT = 20_000
"""Characters of an error or traceback that the ledger keeps."""

log = structlog.get_logger()


class Failures:
    """Decides; every function is a part of one ledger transaction, for a call that is in flight no more."""

    def __init__(self, store: ArtifactStore, endings: Endings) -> None:
        self._store, self._endings = store, endings

    def failed(self, connection: sa.Connection, flight: Flight, message: Failed) -> None:
        """A call came back without a result."""
        call = flight.call
        if message.stored:
            self._endings.settle(connection, call.id, State.SUCCEEDED, keys=message.stored)
        left = sorted({task.key for task in call.tasks} - set(message.stored))
        if not left:  # whatever it failed of, all that it was to make is there
            tables.move_call(connection, call.id, State.SUCCEEDED)
            return
        if flight.recalled is Recalled.FOR_ANOTHER:  # it failed of being taken back, and of nothing else
            tables.move_call(connection, call.id, State.PENDING)
            return
        if flight.recalled is Recalled.OVERDUE:
            error = f"timed out: {call.kind} took longer than {flight.timeout_s:g} s, its timeout_s"
            message = replace(message, error=error, transient=True, crashed=False)
        row = connection.execute(sa.select(tables.calls).where(tables.calls.c.id == call.id)).one()
        crashes = row.crashes + message.crashed
        told = {
            "crashes": crashes,
            "error": message.error.strip()[:TEXT_KEPT] or "failed",
            "traceback": message.traceback[-TEXT_KEPT:],
            "host": message.host or row.host,
        }
        tries_left = call.attempt - row.losses <= flight.retries
        if message.missing:
            self._heal(connection, flight, message.missing, {**told, "losses": row.losses + 1})
        elif message.crashed and crashes >= CRASHES - 1 and len(left) > 1 and self._may_split(connection, row.sweep):
            # What crashed together is held against nobody alone: each piece has all its attempts.
            self._split(connection, flight, left, {**told, "crashes": CRASHES - 1, "losses": call.attempt})
        elif message.transient and tries_left and crashes < CRASHES:
            self._again(connection, flight, told)
        else:
            if message.crashed and crashes >= CRASHES:
                told["error"] += f" (crash {crashes}: it is not tried again)"
            self._end(connection, call, told)

    def lost(self, connection: sa.Connection, flight: Flight, reason: str) -> None:
        """The cluster or the driver is gone, and the call with it."""
        if flight.began is None:
            tables.move_call(connection, flight.call.id, State.PENDING)
            return
        row = connection.execute(sa.select(tables.calls).where(tables.calls.c.id == flight.call.id)).one()
        if row.losses + 1 < LOSSES:
            again = {"attempt": row.attempt + 1, "losses": row.losses + 1}
            tables.move_call(connection, flight.call.id, State.PENDING, **again)
        else:
            error = f"{reason}; it ran at {LOSSES} such losses, and is not tried again"
            self._end(connection, flight.call, {"error": error, "traceback": ""})

    def _again(self, connection: sa.Connection, flight: Flight, told: dict[str, Any]) -> None:
        call = flight.call
        pause = _pause(flight)
        again = {"attempt": call.attempt + 1, "not_before": time.time() + pause}
        if tables.move_call(connection, call.id, State.PENDING, **told, **again):
            text = f"{_count(call)} failed ({_first(told)}); attempt {call.attempt + 1} in {pause:g} s"
            tell_all(connection, call.id, "call.retried", text, attempt=call.attempt + 1)

    def _heal(self, connection: sa.Connection, flight: Flight, missing: Sequence[str], told: dict[str, Any]) -> None:
        """Not held against the call, which has done nothing, up to ``LOSSES`` times."""
        call = flight.call
        if told["losses"] >= LOSSES:
            self._end(connection, call, told)
            return
        if not tables.move_call(connection, call.id, State.PENDING, **told, attempt=call.attempt + 1):
            return
        made = False
        try:
            made = make_again(connection, self._store, call.id, missing)
        except CannotHeal as error:
            told["error"] = f"{told['error']}; {error}"
            self._end(connection, call, told)
        except ArtifactError as error:  # the store cannot be looked into now: the next attempt tells
            log.warning("healing is put off", call=call.id, error=str(error))
        else:
            text = f"{_count(call)} waits: {len(missing):,} of its inputs are made again ({_first(told)})"
            tell_all(connection, call.id, "artifact.lost", text, missing=list(missing))
        if not made:  # they are there again, or this machine sees them and the worker does not, or nobody can tell now
            later = tables.calls.update().where(tables.calls.c.id == call.id)
            connection.execute(later.values(not_before=time.time() + _pause(flight)))

    def _split(self, connection: sa.Connection, flight: Flight, left: Sequence[str], told: dict[str, Any]) -> None:
        call = flight.call
        again = {"attempt": call.attempt + 1, "not_before": time.time() + _pause(flight)}
        if tables.move_call(connection, call.id, State.PENDING, **told, **again):
            pieces = [left[number::PIECES] for number in range(min(PIECES, len(left)))]
            tables.split_call(connection, call.id, pieces[1:])
            text = f"{_count(call)} crashed again ({_first(told)}); they run in {len(pieces)} calls, to find the cause"
            tell_all(connection, call.id, "call.split", text)

    def _may_split(self, connection: sa.Connection, sweep: str) -> bool:
        c = tables.calls.c
        suspects = sa.select(sa.func.count()).where(c.sweep == sweep, c.state.in_(OPEN), c.crashes >= CRASHES - 1)
        return (connection.scalar(suspects) or 0) < SUSPECTS

    def _end(self, connection: sa.Connection, call: Call, told: dict[str, Any]) -> None:
        if tables.move_call(connection, call.id, State.FAILED, **told):
            log.warning("call failed", call=call.id, kind=call.kind, error=_first(told))
            text = f"{_count(call)} failed: {_first(told)}"
            self._endings.settle(connection, call.id, State.FAILED, "call.failed", text)


def _pause(flight: Flight) -> float:
    return float(min(flight.backoff_s * 2 ** min(flight.call.attempt - 1, 20), LONGEST_PAUSE_S))


def _count(call: Call) -> str:
    return f"{len(call.tasks):,} {call.kind}"


def _first(told: dict[str, Any]) -> str:
    return str(told["error"]).splitlines()[0]
