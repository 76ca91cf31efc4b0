"""The audit log: rows about who changed what, which are only added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from creditgrid.service.ledger.tables import audit


def add_entry(connection: sa.Connection, **entry: Any) -> None:
    """Add a row, in the transaction of the change; ``entry`` has all columns but ``id``."""
    connection.execute(audit.insert().values(**entry))


def entries(
    connection: sa.Connection, actor: str | None, target: str | None, before: int | None, limit: int
) -> Sequence[sa.Row[Any]]:
    """Rows with an id below ``before``, the newest first; if given, only those of this actor or target."""
    query = sa.select(audit).order_by(audit.c.id.desc()).limit(limit)
    if actor is not None:
        query = query.where(audit.c.actor == actor)
    if target is not None:
        query = query.where(audit.c.target == target)
    if before is not None:
        query = query.where(audit.c.id < before)
    return connection.execute(query).all()
