"""Events of a sweep: appended in the transaction of the change that they report."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from creditgrid.core.fingerprint import canonical_json
from creditgrid.core.states import State
from creditgrid.service.ledger.changes import note_event
from creditgrid.service.ledger.tables import events

_APPEND = events.insert()


def emit_event(connection: sa.Connection, sweep: str, event: str, message: str, **data: Any) -> None:
    """Append an event to a sweep."""
    plain = {name: str(value) if isinstance(value, State) else value for name, value in data.items()}
    text = canonical_json({"message": message, **plain})
    connection.execute(_APPEND, {"sweep": sweep, "at": time.time(), "type": event, "data": text})
    note_event(connection, sweep, event)


def emit_to_all(connection: sa.Connection, sweeps: Iterable[str], event: str, message: str, **data: Any) -> None:
    """Append an event to each of the sweeps."""
    for sweep in sweeps:
        emit_event(connection, sweep, event, message, **data)
