"""Which sweep a call belongs to: of the open sweeps that need it, the most urgent one that is not paused.

The owner decides when the call runs, and its spec says with what resources, retries and timeout.
"""

from __future__ import annotations

import sqlalchemy as sa

from creditgrid.core.states import FINISHED, OPEN
from creditgrid.service.ledger.counts import calls_needed_by
from creditgrid.service.ledger.tables import calls, needs, sweeps


def claim(connection: sa.Connection, sweep: str) -> None:
    """Make the sweep the owner of open calls that it needs, where the owner is less urgent, is paused or has ended."""
    own = connection.execute(sa.select(sweeps).where(sweeps.c.id == sweep)).one()
    if own.paused or own.state not in OPEN or not own.planned:
        return
    less_urgent = (sweeps.c.priority < own.priority) | ((sweeps.c.priority == own.priority) & (sweeps.c.seq > own.seq))
    behind = sa.select(sweeps.c.id).where(sweeps.c.paused | sweeps.c.state.in_(FINISHED) | less_urgent)
    behind = behind.where(sweeps.c.planned)  # a plan may add tasks to its calls until it is whole
    needed = calls.c.state.in_(OPEN) & calls.c.id.in_(calls_needed_by(sweep))
    connection.execute(
        calls.update().where(needed, calls.c.sweep != sweep, calls.c.sweep.in_(behind)).values(sweep=sweep)
    )


def share_out(connection: sa.Connection, sweep: str) -> None:
    """The sweep is planned now: sweeps that share its calls and are more urgent own them."""
    own = sa.select(calls.c.id).where(calls.c.sweep == sweep, calls.c.state.in_(OPEN))
    sharing = sa.select(needs.c.sweep).where(needs.c.call.in_(own), needs.c.sweep != sweep).distinct()
    for other in connection.scalars(sharing).all():
        claim(connection, other)


def hand_over(connection: sa.Connection, sweep: str) -> None:
    """Give open calls of a sweep that is paused or has ended to other sweeps that need them."""
    owned = sa.select(calls.c.id).where(calls.c.sweep == sweep, calls.c.state.in_(OPEN)).limit(1)
    if connection.scalar(owned) is None:
        return
    others = sa.select(sweeps.c.id).where(sweeps.c.state.in_(OPEN), ~sweeps.c.paused, sweeps.c.id != sweep)
    for other in connection.scalars(others.order_by(sweeps.c.priority, sweeps.c.seq.desc())).all():
        claim(connection, other)


def hand_over_all(connection: sa.Connection) -> None:
    """Hand over the calls of every sweep that is paused or has ended."""
    idle = sweeps.c.paused | sweeps.c.state.in_(FINISHED)
    owners = sa.select(calls.c.sweep).where(calls.c.state.in_(OPEN)).distinct()
    for sweep in connection.scalars(sa.select(sweeps.c.id).where(sweeps.c.id.in_(owners), idle)).all():
        hand_over(connection, sweep)
