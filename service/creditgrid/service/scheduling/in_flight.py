"""Calls in flight: what the scheduler keeps in memory about them. A restart does without."""

from __future__ import annotations

import enum
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from creditgrid.core.wire import Activity
from creditgrid.core.work import Work
from creditgrid.service.ledger.tables import UNKNOWN
from creditgrid.service.prediction.forecast import InProgress
from creditgrid.workers.runner import Call


class Recall(enum.Enum):
    """Why a call that its sweep still needs was taken back from the runner."""

    NOT_STARTED = enum.auto()  # a more urgent call was ready, its sweep was paused, or the service stops
    OVERDUE = enum.auto()  # it took longer than the timeout of its kind


PATIENCE_S = 1.0
"""Reports of short steps may be so far apart, and the call is on its way."""


@dataclass(slots=True)
class SubmittedCall:
    """A call that the runner has, and what the spec of its owner says about it."""

    call: Call
    owner: str
    priority: int
    retries: int
    backoff_s: float
    timeout_s: float | None
    activity: Activity
    person: str | None = None  # who submitted the owner
    started: float | None = None
    work: Work | None = None
    level: int = 0
    scale: int = UNKNOWN
    first: tuple[int, float] | None = None  # the first progress: steps done, and when
    latest: tuple[int, float] | None = None  # the last report of more steps
    recalled: Recall | None = None

    def overdue(self, now: float) -> bool:
        """Whether it has run longer than its timeout."""
        return self.started is not None and self.timeout_s is not None and now - self.started > self.timeout_s

    def advanced(self, done: int) -> None:
        """Note a report of progress, from which the time left follows."""
        if self.latest is None or done > self.latest[0]:
            self.latest = done, time.monotonic()
            self.first = self.first or self.latest


class InFlight:
    """All submitted calls by id. Changed only within a ledger transaction, since cancel comes from other threads."""

    def __init__(self) -> None:
        self._by_id: dict[int, SubmittedCall] = {}
        self.to_cancel: dict[int, None] = {}
        """Calls to cancel in the runner, in order; the scheduler's thread does it."""

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[SubmittedCall]:
        return iter(list(self._by_id.values()))

    def get(self, call: int) -> SubmittedCall | None:
        """The call, if it is in flight."""
        return self._by_id.get(call)

    def add(self, submitted: SubmittedCall) -> None:
        """Add a call that goes to the runner."""
        self._by_id[submitted.call.id] = submitted

    def remove(self, call: int) -> SubmittedCall | None:
        """Remove a call that the runner has ended. Do not cancel it: it may be submitted again."""
        self.to_cancel.pop(call, None)
        return self._by_id.pop(call, None)

    def abandon(self, call: int) -> None:
        """Remove a call that no sweep needs, and cancel it in the runner."""
        if self._by_id.pop(call, None) is not None:
            self.to_cancel[call] = None

    def recall(self, submitted: SubmittedCall, why: Recall) -> None:
        """Take a call back; it stays in flight until the runner reports its end."""
        if submitted.recalled is None:
            submitted.recalled = why
            self.to_cancel[submitted.call.id] = None

    def waiting(self) -> list[SubmittedCall]:
        """The calls that no process has started."""
        return [submitted for submitted in self if submitted.started is None]

    def by_owner(self) -> Counter[str]:
        """How many calls each sweep has in flight."""
        return Counter(submitted.owner for submitted in self)

    def by_person(self) -> Counter[str | None]:
        """How many calls each person's sweeps have in flight; None stands for sweeps that nobody owns."""
        return Counter(submitted.person for submitted in self)

    def running(self) -> dict[int, InProgress]:
        """What is known of the time of each running call, by its id."""
        now = time.monotonic()
        return {item.call.id: _started(item, item.started, now) for item in self if item.started is not None}

    def activities(self) -> dict[int, tuple[Activity, float]]:
        """The running calls by id, with the seconds that each has run."""
        now = time.monotonic()
        return {item.call.id: (item.activity, now - item.started) for item in self if item.started is not None}


def _started(item: SubmittedCall, started: float, now: float) -> InProgress:
    left, part = None, 0.0
    done, total = item.activity.done, item.activity.total
    if total > 0:
        part = min(max(done / total, 0.0), 1.0)
        if item.first is not None and item.latest is not None and item.latest[0] > item.first[0]:
            left = _left(item.first, item.latest, total, now)
    call = item.call
    return InProgress(call.kind, item.level, item.scale, item.work, call.resources, now - started, left, part)


def _left(first: tuple[int, float], latest: tuple[int, float], total: int, now: float) -> float:
    """The seconds left by the pace between two reports: a call that resumes starts late in its steps.

    Time since the last report counts as progress, up to what a step takes. A call that is silent for longer is slower.
    """
    step = (latest[1] - first[1]) / (latest[0] - first[0])
    since = now - latest[1]
    usual = min(since, max(step, PATIENCE_S))
    return max(max(total - latest[0], 0) * step - usual, 0.0) + (since - usual) / 2
