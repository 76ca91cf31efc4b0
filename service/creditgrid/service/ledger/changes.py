"""What this process has changed in the ledger, so that an answer in memory is known to be valid or not.

One service schedules over one ledger, so every change of it passes through this process.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import sqlalchemy as sa

REMEMBERED = 10_000
"""Sweeps of which the last change is known; the longest unchanged of more count as changed with the last forgotten."""
_OPTION = "creditgrid_events"


class Changes:
    """Numbers the write transactions from 1. Any thread may use it.

    A transaction changes a sweep *itself* where it emits an event of type ``sweep.…``: the sweep was created, paused,
    cancelled, extended, has ended …. Other events report the steps of its calls.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._version = self._forgotten = self._any_sweep = 0
        self._last: OrderedDict[str, tuple[int, int]] = OrderedDict()  # of each sweep: with an event, of itself

    @property
    def version(self) -> int:
        """The number of the last write transaction."""
        return self._version

    @property
    def of_any_sweep(self) -> int:
        """The last transaction that changed any sweep itself."""
        return self._any_sweep

    def of_sweep(self, sweep: str) -> int:
        """The last transaction that changed the sweep itself."""
        return self._last.get(sweep, (0, self._forgotten))[1]

    def of_events(self, sweep: str) -> int:
        """The last transaction with an event of the sweep."""
        return self._last.get(sweep, (self._forgotten, 0))[0]

    def ended(self, events: dict[str, bool]) -> None:
        """A write transaction has ended; ``events`` has each sweep with an event, and whether it changed itself."""
        with self._lock:
            version = self._version + 1
            for sweep, itself in events.items():
                _, before = self._last.get(sweep, (0, self._forgotten))
                self._last[sweep] = version, version if itself else before
                self._last.move_to_end(sweep)
                if itself:
                    self._any_sweep = version
            while len(self._last) > REMEMBERED:
                self._forgotten = max(self._forgotten, *self._last.popitem(last=False)[1])
            self._version = version


def collect_events(connection: sa.Connection) -> dict[str, bool]:
    """What ``note_event`` will note in this transaction: each sweep with an event, and whether it changed itself."""
    events: dict[str, bool] = {}
    connection.execution_options(**{_OPTION: events})
    return events


def note_event(connection: sa.Connection, sweep: str, event: str) -> None:
    """The transaction emits an event of this type for the sweep."""
    events = connection.get_execution_options().get(_OPTION)
    if events is not None:
        events[sweep] = events.get(sweep, False) or event.startswith("sweep.")
