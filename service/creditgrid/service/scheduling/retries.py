"""What happens to a call that failed: another attempt, a wait for an input, a split into smaller calls, or its end.

The machine may be the cause (a lost worker, memory, I/O): then the call gets another attempt after a pause that
doubles, up to the spec's ``retry.max``. A call whose process died is suspect. At its second crash a call of several
tasks is split, so that the third crash of one task fails that task alone. The loss of a whole cluster says little
about the calls that ran on it, so it counts apart.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
import structlog

from creditgrid.core.errors import ArtifactError
from creditgrid.service.ledger import transitions
from creditgrid.service.ledger.counts import sweeps_needing
from creditgrid.service.ledger.events import emit_to_all
from creditgrid.service.ledger.queries import LONGEST_PAUSE_S, call_row, count_suspects
from creditgrid.service.scheduling.completion import Completion
from creditgrid.service.scheduling.in_flight import Recall, SubmittedCall
from creditgrid.service.scheduling.recompute import CannotRecompute, recompute_inputs
from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.runner import Call, Failed

CRASHES = 3
"""A task fails at this crash."""
LOSSES = 10
"""A call fails when it loses the cluster or an input so often: the call may be the cause."""
PIECES = 32
"""The most calls that a suspect call is split into."""
SUSPECTS = 512
"""With so many open suspect calls in a sweep, no single task is the cause, and none is split further."""
TEXT_KEPT = 20_000
"""Characters of an error or traceback that the ledger keeps."""

log = structlog.get_logger()


class Retries:
    """Decides what happens to a call that is no longer in flight; every function is part of one ledger transaction."""

    def __init__(self, store: ArtifactStore, completion: Completion) -> None:
        self._store, self._completion = store, completion

    def call_failed(self, connection: sa.Connection, submitted: SubmittedCall, message: Failed) -> None:
        """The runner reports that a call failed."""
        call = submitted.call
        if message.stored:
            self._completion.tasks_ended(connection, transitions.keep_tasks(connection, call.id, message.stored))
        left = sorted({task.key for task in call.tasks} - set(message.stored))
        if not left:  # the failure came after all artifacts were stored
            transitions.close_call(connection, call.id)
            return
        if submitted.recalled is Recall.NOT_STARTED:  # it failed because it was taken back
            transitions.requeue_call(connection, call.id)
            return
        if submitted.recalled is Recall.OVERDUE:
            error = f"timed out: {call.kind} took longer than {submitted.timeout_s:g} s, its timeout_s"
            message = replace(message, error=error, transient=True, crashed=False)
        row = call_row(connection, call.id)
        crashes = row.crashes + message.crashed
        columns = {
            "crashes": crashes,
            "error": message.error.strip()[:TEXT_KEPT] or "failed",
            "traceback": message.traceback[-TEXT_KEPT:],
            "host": message.host or row.host,
        }
        attempts_left = call.attempt - row.losses <= submitted.retries
        if message.missing:
            self._await_inputs(connection, submitted, message.missing, {**columns, "losses": row.losses + 1})
        elif message.crashed and crashes >= CRASHES - 1 and len(left) > 1 and self._may_split(connection, row.sweep):
            # One of the tasks crashed the call; each piece gets all its attempts.
            self._split(connection, submitted, left, {**columns, "crashes": CRASHES - 1, "losses": call.attempt})
        elif message.transient and attempts_left and crashes < CRASHES:
            self._retry(connection, submitted, columns)
        else:
            if message.crashed and crashes >= CRASHES:
                columns["error"] += f" (crash {crashes}: it is not tried again)"
            self._fail(connection, call, columns)

    def call_lost(self, connection: sa.Connection, submitted: SubmittedCall, reason: str) -> None:
        """The call was lost with the cluster or the driver."""
        call = submitted.call
        if submitted.started is None:
            transitions.requeue_call(connection, call.id)
            return
        row = call_row(connection, call.id)
        if row.losses + 1 < LOSSES:
            transitions.requeue_call(connection, call.id, attempt=row.attempt + 1, losses=row.losses + 1)
        else:
            error = f"{reason}; the call was running during {LOSSES} cluster losses, and is not tried again"
            self._fail(connection, call, {"error": error, "traceback": ""})

    def _retry(self, connection: sa.Connection, submitted: SubmittedCall, columns: dict[str, Any]) -> None:
        call, pause = submitted.call, _pause(submitted)
        text = f"{_count(call)} failed ({_first_line(columns)}); attempt {call.attempt + 1} in {pause:g} s"
        columns |= {"attempt": call.attempt + 1, "not_before": time.time() + pause}
        transitions.requeue_call(connection, call.id, "call.retried", text, **columns)

    def _await_inputs(
        self, connection: sa.Connection, submitted: SubmittedCall, missing: Sequence[str], columns: dict[str, Any]
    ) -> None:
        """Compute lost inputs again. Up to ``LOSSES`` times this does not count as an attempt of the call."""
        call = submitted.call
        if columns["losses"] >= LOSSES:
            self._fail(connection, call, columns)
            return
        if not transitions.requeue_call(connection, call.id, **columns, attempt=call.attempt + 1):
            return
        waits = False
        try:
            waits = recompute_inputs(connection, self._store, call.id, missing)
        except CannotRecompute as error:
            columns["error"] = f"{columns['error']}; {error}"
            self._fail(connection, call, columns)
        except ArtifactError as error:  # the store cannot be read now: the next attempt decides
            log.warning("recomputation is postponed", call=call.id, error=str(error))
        else:
            text = f"{_count(call)} waits: {len(missing):,} of its inputs are computed again ({_first_line(columns)})"
            sweeps = sweeps_needing(connection, call.id)
            emit_to_all(connection, sweeps, "artifact.lost", text, call=call.id, missing=list(missing))
        if not waits:  # the inputs are there again, or the worker does not see them, or the store cannot be read
            transitions.delay_call(connection, call.id, time.time() + _pause(submitted))

    def _split(
        self, connection: sa.Connection, submitted: SubmittedCall, left: Sequence[str], columns: dict[str, Any]
    ) -> None:
        call = submitted.call
        pieces = [left[number::PIECES] for number in range(min(PIECES, len(left)))]
        columns |= {"attempt": call.attempt + 1, "not_before": time.time() + _pause(submitted)}
        if transitions.requeue_call(connection, call.id, **columns):
            transitions.split_call(connection, call.id, pieces[1:])
            text = f"{_count(call)} crashed again ({_first_line(columns)}); they run in {len(pieces)} smaller calls"
            emit_to_all(connection, sweeps_needing(connection, call.id), "call.split", text, call=call.id)

    def _may_split(self, connection: sa.Connection, sweep: str) -> bool:
        return count_suspects(connection, sweep, CRASHES - 1) < SUSPECTS

    def _fail(self, connection: sa.Connection, call: Call, columns: dict[str, Any]) -> None:
        text = f"{_count(call)} failed: {_first_line(columns)}"
        sweeps = transitions.fail_call(connection, call.id, text, **columns)
        if sweeps is not None:
            log.warning("call failed", call=call.id, kind=call.kind, error=_first_line(columns))
            self._completion.tasks_ended(connection, sweeps, failed=True)


def _pause(submitted: SubmittedCall) -> float:
    return float(min(submitted.backoff_s * 2 ** min(submitted.call.attempt - 1, 20), LONGEST_PAUSE_S))


def _count(call: Call) -> str:
    return f"{len(call.tasks):,} {call.kind}"


def _first_line(columns: dict[str, Any]) -> str:
    return str(columns["error"]).splitlines()[0]
