"""States of sweeps, calls, tasks and cells. The ledger's transitions say which step leads from one to another.

``pending`` waits for other tasks · ``queued`` was handed to the runner · ``running`` a process computes it ·
``succeeded`` its result is durable · ``cached`` its result was durable before the sweep came · ``failed`` ·
``cancelled`` · ``skipped`` a task that it needs has no result. Finished is final, except that ``retry`` or another
sweep may request what has no result again: then it is ``pending`` once more.
"""

from __future__ import annotations

import enum


class State(enum.StrEnum):
    """The state of a sweep, call, task or cell."""

    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    CACHED = "cached"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"

    @property
    def finished(self) -> bool:
        """Whether it stays so unless a user asks for more."""
        return self in FINISHED


OPEN = (State.PENDING, State.QUEUED, State.RUNNING)
FINISHED = (State.SUCCEEDED, State.CACHED, State.FAILED, State.CANCELLED, State.SKIPPED)
RESULT = (State.SUCCEEDED, State.CACHED)
"""The states with a result."""
WITHOUT_RESULT = (State.FAILED, State.CANCELLED, State.SKIPPED)
"""The finished states without a result."""
