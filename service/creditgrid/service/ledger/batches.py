"""Numbers of the batches in which rows go into the results table."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from creditgrid.core.states import State
from creditgrid.service.ledger.tables import calls, chunks, meta


def next_batch(connection: sa.Connection, finished: Sequence[int]) -> tuple[int, set[int]]:
    """Number the next batch, and note the calls that it holds: those of ``finished`` that were not cancelled since."""
    number = last_batch(connection) + 1
    connection.execute(meta.delete().where(meta.c.name == "batch"))
    connection.execute(meta.insert().values(name="batch", value=str(number)))
    held: set[int] = set()
    in_flight = calls.c.state.in_((State.QUEUED, State.RUNNING))
    for piece in chunks(finished):
        noted = calls.update().where(calls.c.id.in_(piece), in_flight).values(batch=number)
        held.update(connection.scalars(noted.returning(calls.c.id)))
    return number, held


def last_batch(connection: sa.Connection) -> int:
    """The number of the last batch that was started; 0 for none."""
    return int(connection.scalar(sa.select(meta.c.value).where(meta.c.name == "batch")) or 0)


def last_written_batch(connection: sa.Connection) -> int:
    """The number of the last batch whose calls succeeded; 0 for none."""
    written = sa.select(sa.func.max(calls.c.batch)).where(calls.c.state == State.SUCCEEDED)
    return int(connection.scalar(written) or 0)
