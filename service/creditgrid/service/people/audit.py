"""The audit log: who changed what. Rows are only added.

A change and its row are one ledger transaction. Refused requests change nothing, so their rows are collected in memory
and written once a minute: equal ones are one row, which bounds what a client that repeats them can write.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeAlias

import sqlalchemy as sa

from creditgrid.core.wire import AuditView
from creditgrid.service.ledger.audit import add_entry, entries
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.people.actor import ANYONE, Actor

DONE, REFUSED = "done", "refused"
MOST_REFUSED = 100
"""Different refusals that are kept until they are written; further ones are only counted."""

_Key: TypeAlias = tuple[str | None, str, str, str]
"""Name, action, target and reason."""


@dataclass(slots=True)
class _Refusal:
    actor: Actor
    at: float
    times: int = 1


class Audit:
    """Reads and writes from any thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._refused: dict[_Key, _Refusal] = {}
        self._more = 0

    def note(self, actor: Actor, action: str, target: str, detail: str = "") -> None:
        """Write a row about a change outside the ledger."""
        with self._ledger.write() as connection:
            record(connection, actor, action, target, detail)

    def note_refusal(self, actor: Actor, action: str, target: str, why: str) -> None:
        """Remember that a request was refused; it takes no time, and ``flush`` writes it."""
        with self._lock:
            self._remember((actor.name, action, target[:200], why[:500]), _Refusal(actor, time.time()))

    def flush(self) -> None:
        """Write the refusals since the last time.

        Raises:
            OperationalError: the ledger cannot be written now; they are kept.
        """
        with self._lock:  # not while the ledger is written: ``note_refusal`` must not wait
            refused, more = self._refused, self._more
            self._refused, self._more = {}, 0
        if not refused:
            return
        try:
            with self._ledger.write() as connection:
                for (_, action, target, why), refusal in refused.items():
                    detail = why if refusal.times == 1 else f"{why} ({refusal.times:,} times)"
                    record(connection, refusal.actor, action, target, detail, outcome=REFUSED, at=refusal.at)
                if more:
                    detail = f"{more:,} more requests were refused"
                    record(connection, ANYONE, "other", "", detail, outcome=REFUSED)
        except BaseException:
            with self._lock:
                self._more += more
                for key, refusal in refused.items():
                    self._remember(key, refusal)
            raise

    def _remember(self, key: _Key, refusal: _Refusal) -> None:
        if key in self._refused:
            self._refused[key].times += refusal.times
        elif len(self._refused) < MOST_REFUSED:
            self._refused[key] = refusal
        else:
            self._more += refusal.times

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
