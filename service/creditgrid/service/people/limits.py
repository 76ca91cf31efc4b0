"""The limits of a person: how many cells may be open, and how urgent a sweep may be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from creditgrid.core.errors import ForbiddenError
from creditgrid.core.states import OPEN
from creditgrid.service.ledger.tables import CELLS, counts, sweeps
from creditgrid.service.people.actor import Actor


def check_priority(actor: Actor, priority: int) -> None:
    """Raise ForbiddenError for a sweep that is more urgent than the actor's sweeps may be."""
    limit = actor.limits.priority
    if limit is not None and priority > limit:
        raise ForbiddenError(
            f"priority {priority} is above the limit of {actor.name!r}, which is {limit} (max_priority): choose "
            f"{limit} or less"
        )


def check_room(connection: sa.Connection, actor: Actor) -> None:
    """Raise ForbiddenError if the actor may have no further open cell: this costs less than a plan."""
    limit = actor.limits.open_cells
    if limit is not None and (now := count_open_cells(connection, actor.name)) >= limit:
        raise ForbiddenError(f"{actor.name!r} has {now:,} open cells, and {_advice(limit)}")


def check_plan(connection: sa.Connection, actor: Actor, plan: str) -> None:
    """Raise ForbiddenError if what is written of a hidden plan is too much already: the rest need not be planned."""
    limit = actor.limits.open_cells
    if limit is None:
        return
    now, more = count_open_cells(connection, actor.name), _count(connection, counts.c.sweep == plan)
    if more and now + more > limit:
        raise ForbiddenError(
            f"{actor.name!r} has {now:,} open cells, this would open at least {more:,} more, and {_advice(limit)}"
        )


@contextmanager
def within_limit(connection: sa.Connection, actor: Actor) -> Iterator[None]:
    """Raise ForbiddenError at the end if what happens within gives the actor too many open cells.

    Writers of the ledger run one after the other, so requests at the same time cannot exceed the limit together.
    """
    limit = actor.limits.open_cells
    before = 0 if limit is None else count_open_cells(connection, actor.name)
    yield
    if limit is not None and (after := count_open_cells(connection, actor.name)) > max(limit, before):
        raise ForbiddenError(
            f"{actor.name!r} has {before:,} open cells, this would open {after - before:,} more, and {_advice(limit)}"
        )


def count_open_cells(connection: sa.Connection, owner: str | None) -> int:
    """The open cells of all sweeps of the owner. A cell that two of them share counts twice."""
    owned = sa.select(sweeps.c.id).where(sweeps.c.owner == owner, sweeps.c.state.in_(OPEN), sweeps.c.planned)
    return _count(connection, counts.c.sweep.in_(owned))


def _count(connection: sa.Connection, which: sa.ColumnElement[bool]) -> int:
    query = sa.select(sa.func.sum(counts.c.n)).where(which, counts.c.kind == CELLS, counts.c.state.in_(OPEN))
    return int(connection.scalar(query) or 0)


def _advice(limit: int) -> str:
    return f"the limit is {limit:,} (max_open_cells): wait until some have ended, or cancel a sweep"
