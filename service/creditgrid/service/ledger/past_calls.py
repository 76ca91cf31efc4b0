"""What the last calls of each kind took on each device: to predict others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import sqlalchemy as sa

from creditgrid.core.work import Work
from creditgrid.service.ledger.tables import past_calls

NOTHING = (0, None, None)
"""What ``newest_call`` says of an empty ledger."""
KEPT = 50
"""Calls kept for each kind and device."""


class PastCall(NamedTuple):
    """A call that succeeded. Its work is None if it was unknown."""

    kind: str
    device: str
    work: Work | None
    tasks: int
    seconds: float
    artifacts: int
    bytes: int
    at: float


# Text, because SQLAlchemy has no INSERT … ON CONFLICT for both databases. The slot is the oldest, or one more.
_KEEP = sa.text(
    "INSERT INTO past_calls (kind, device, slot, launches, flops, elements, tasks, seconds, artifacts, bytes, at) "
    "VALUES (:kind, :device, :slot, :launches, :flops, :elements, :tasks, :seconds, :artifacts, :bytes, :at) "
    "ON CONFLICT (kind, device, slot) DO UPDATE SET launches = excluded.launches, flops = excluded.flops, "
    "elements = excluded.elements, tasks = excluded.tasks, seconds = excluded.seconds, "
    "artifacts = excluded.artifacts, bytes = excluded.bytes, at = excluded.at"
)
_NEXT = sa.select(sa.func.count(), sa.func.max(past_calls.c.slot)).where(
    past_calls.c.kind == sa.bindparam("kind"), past_calls.c.device == sa.bindparam("device")
)
_OLDEST = (
    sa.select(past_calls.c.slot)
    .where(past_calls.c.kind == sa.bindparam("kind"), past_calls.c.device == sa.bindparam("device"))
    .order_by(past_calls.c.at, past_calls.c.slot)
    .limit(1)
)


def record_call(connection: sa.Connection, call: PastCall) -> None:
    """Keep a call, in the place of the oldest one."""
    which = {"kind": call.kind, "device": call.device}
    count, slot = connection.execute(_NEXT, which).one()
    slot = slot + 1 if 0 < count < KEPT else 0 if not count else connection.scalar(_OLDEST, which)
    work: Mapping[str, float | None] = dict.fromkeys(Work._fields) if call.work is None else call.work._asdict()
    rest = {"tasks": call.tasks, "seconds": call.seconds, "artifacts": call.artifacts, "bytes": call.bytes}
    connection.execute(_KEEP, {**which, "slot": slot, **work, **rest, "at": call.at})


def newest_call(connection: sa.Connection) -> object:
    """Changes with each call that is recorded."""
    c = past_calls.c
    return tuple(connection.execute(sa.select(sa.func.count(), sa.func.max(c.at), sa.func.sum(c.seconds))).one())


def read_calls(connection: sa.Connection) -> list[PastCall]:
    """All calls that are kept, the oldest first."""
    found = connection.execute(sa.select(past_calls).order_by(past_calls.c.at, past_calls.c.slot))
    return [
        PastCall(
            row.kind,
            row.device,
            None if row.launches is None else Work(row.launches, row.flops, row.elements),
            row.tasks,
            row.seconds,
            row.artifacts,
            row.bytes,
            row.at,
        )
        for row in found
    ]
