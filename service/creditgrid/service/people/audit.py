"""The audit log: who changed what. Rows are only added.

A change and its row are one ledger transaction. Refused requests change nothing, so their rows are collected in memory
and written once a minute: equal ones are one row, which bounds what a client that repeats them can write.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa

from creditgrid.core.wire import AuditView
from creditgrid.service.ledger.audit import add_entry, entries
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.people.actor import ANYONE, Actor

DONE, REFUSED = "done", "refused"
MOST_REFUSED = 100
"""Different refusals that are kept until they are written; further ones are only counted."""


@dataclass(slots=True)
class _Refusal:
    actor: Actor
    why: str
    at: float
    times: int = 0


class Audit:
    """Reads and writes from any thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._refused: dict[tuple[str | None, str, str], _Refusal] = {}
        self._more = 0

    def note(self, actor: Actor, action: str, target: str, detail: str = "") -> None:
        """Write a row about a change outside the ledger."""
        with self._ledger.write() as connection:
            record(connection, actor, action, target, detail)

    def note_refusal(self, actor: Actor, action: str, target: str, why: str) -> None:
        """Remember that a request was refused; takes no time, and ``flush`` writes it."""
        key = actor.name, action, target[:200]
        with self._lock:
            if key not in self._refused:
                if len(self._refused) >= MOST_REFUSED:
                    self._more += 1
                    return
                self._refused[key] = _Refusal(actor, why, time.time())
            self._refused[key].times += 1

    def flush(self) -> None:
        """Write the refusals since the last time.

        Raises:
            OperationalError: the ledger cannot be written now; they are kept.
        """
        with self._lock:
            if not self._refused:
                return
            with self._ledger.write() as connection:
                for (_, action, target), refusal in self._refused.items():
                    why = refusal.why if refusal.times == 1 else f"{refusal.why} ({refusal.times:,} times)"
                    record(connection, refusal.actor, action, target, why, outcome=REFUSED, at=refusal.at)
                if self._more:
                    more = f"{self._more:,} more requests were refused"
                    record(connection, ANYONE, "other", "", more, outcome=REFUSED)
            self._refused, self._more = {}, 0

    def page(
        self, actor: str | None, target: str | None, after: int | None, limit: int
    ) -> tuple[list[AuditView], int | None]:
        """Rows, the newest first, after the row with the id ``after``; and the next page's ``after``."""
        self.flush()
        with self._ledger.read() as connection:
            rows = entries(connection, actor, target, after, limit + 1)
        shown = [AuditView(**{**row._mapping, "at": datetime.fromtimestamp(row.at, UTC)}) for row in rows[:limit]]
        return shown, shown[-1].id if len(rows) > limit else None


def record(
    connection: sa.Connection,
    actor: Actor,
    action: str,
    target: str,
    detail: str = "",
    *,
    outcome: str = DONE,
    at: float | None = None,
) -> None:
    """Write a row in the transaction of the change; ``target`` names a sweep, a token or a checkpoint."""
    add_entry(
        connection,
        at=time.time() if at is None else at,
        actor=actor.name,
        request=actor.request,
        action=action,
        target=target,
        outcome=outcome,
        detail=detail,
    )
