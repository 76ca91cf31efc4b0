"""The state of a task, which its row leaves to its call.

A task that says ``pending`` has the state of its call, whether the call is open or has ended. Only a task that differs
has a state of its own: it ended before its call, or no call of this ledger computes it. So the end of a call of ten
thousand tasks writes none of their rows, which are the longest of the ledger.
"""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from creditgrid.core.states import FINISHED, State
from creditgrid.service.ledger.tables import calls, one_of, tasks

_its_call = calls.alias("its_call")


def _call_is_in(states: Collection[State]) -> sa.ColumnElement[bool]:
    its = sa.select(sa.literal(1)).where(_its_call.c.id == tasks.c.call, one_of(_its_call.c.state, states))
    return its.exists()


def ended_as(states: Collection[State]) -> sa.ColumnElement[bool]:
    """Whether a row of ``tasks`` has ended in one of these states."""
    return one_of(tasks.c.state, states) | ((tasks.c.state == State.PENDING) & _call_is_in(states))


_ENDED = sa.select(_its_call.c.state).where(_its_call.c.id == tasks.c.call, one_of(_its_call.c.state, FINISHED))

NOT_ENDED: sa.ColumnElement[bool] = (tasks.c.state == State.PENDING) & ~_call_is_in(FINISHED)
"""Whether a row of ``tasks`` has not ended."""

STATE: sa.ColumnElement[str] = sa.case(
    (tasks.c.state == State.PENDING, sa.func.coalesce(_ENDED.scalar_subquery(), tasks.c.state)), else_=tasks.c.state
)
"""The state of a row of ``tasks``: pending until it has ended."""
