"""States of cells, tasks and sweeps: one enum, and the legal transitions in one place. Finished is final.

``pending`` waits for other tasks · ``queued`` was handed to the runner · ``running`` a process works on it ·
``succeeded`` its result is durable · ``cached`` it was durable before the sweep came · ``failed`` · ``cancelled`` ·
``skipped`` a task that it needs failed. A task that ended without a result may be asked for again, by ``retry`` or by
another sweep: then a new life begins at ``pending``; nothing else leaves a finished state.
"""

from __future__ import annotations

import enum


class State(enum.StrEnum):
    """What a cell, task, call or sweep is at."""

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
        """Whether nothing more will happen by itself."""
        return self in FINISHED


OPEN = (State.PENDING, State.QUEUED, State.RUNNING)
FINISHED = (State.SUCCEEDED, State.CACHED, State.FAILED, State.CANCELLED, State.SKIPPED)
RESULT = (State.SUCCEEDED, State.CACHED)
"""The states in which a result is there."""
WITHOUT_RESULT = (State.FAILED, State.CANCELLED, State.SKIPPED)
"""The finished states that a retry begins anew."""

TRANSITIONS: dict[State, tuple[State, ...]] = {
    State.PENDING: (State.QUEUED, State.CANCELLED, State.SKIPPED, State.FAILED),
    State.QUEUED: (State.RUNNING, State.PENDING, State.SUCCEEDED, State.FAILED, State.CANCELLED),
    State.RUNNING: (State.PENDING, State.SUCCEEDED, State.FAILED, State.CANCELLED),
    **dict.fromkeys(FINISHED, ()),
}
"""From each state, where a step may lead; back to pending after a lost worker or driver."""


def sources(target: State) -> tuple[State, ...]:
    """The states from which ``target`` may be entered."""
    return tuple(state for state, targets in TRANSITIONS.items() if target in targets)
