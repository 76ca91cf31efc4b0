"""Calls in flight: what is in memory of them between the ledger and the runner. A restart needs none of it."""

from __future__ import annotations

import enum
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from creditgrid.core.wire import Activity
from creditgrid.workers.runner import Call


class Recalled(enum.Enum):
    """Why a call that still has its place in the sweep was taken back from the runner."""

    FOR_ANOTHER = enum.auto()  # it had not begun, and something more urgent came or its sweep was paused
    OVERDUE = enum.auto()  # it took longer than its kind may


@dataclass(slots=True)
class Flight:
    """A call that the runner has, and what its sweep's spec says of it."""

    call: Call
    owner: str
    priority: int
    retries: int
    backoff_s: float
    timeout_s: float | None
    activity: Activity
    began: float | None = None
    recalled: Recalled | None = None

    def overdue(self, now: float) -> bool:
        """Whether it has run for longer than it may."""
        return self.began is not None and self.timeout_s is not None and now - self.began > self.timeout_s


class Flights:
    """All of them by call. Changed within a ledger transaction only: cancel comes from other threads."""

    def __init__(self) -> None:
        self._by_call: dict[int, Flight] = {}
        self.to_stop: dict[int, None] = {}
        """Calls to take back from the runner, in order; its own thread does."""

    def __len__(self) -> int:
        return len(self._by_call)

    def __iter__(self) -> Iterator[Flight]:
        return iter(list(self._by_call.values()))

    def get(self, call: int) -> Flight | None:
        """The call's flight, if it is in flight."""
        return self._by_call.get(call)

    def add(self, flight: Flight) -> None:
        """Note a call that goes to the runner."""
        self._by_call[flight.call.id] = flight

    def end(self, call: int) -> Flight | None:
        """Forget a call that the runner is through with: it may go there again, and is not to be stopped then."""
        self.to_stop.pop(call, None)
        return self._by_call.pop(call, None)

    def abandon(self, call: int) -> None:
        """Forget a call whose end nobody waits for, and have it stopped."""
        if self._by_call.pop(call, None) is not None:
            self.to_stop[call] = None

    def recall(self, flight: Flight, why: Recalled) -> None:
        """Take a call back: it is in flight until the runner has told its end."""
        if flight.recalled is None:
            flight.recalled = why
            self.to_stop[flight.call.id] = None

    def waiting(self) -> list[Flight]:
        """Those that no process has begun."""
        return [flight for flight in self if flight.began is None]

    def by_sweep(self) -> Counter[str]:
        """How many each sweep has in flight."""
        return Counter(flight.owner for flight in self)

    def activities(self) -> dict[int, tuple[Activity, float]]:
        """Those that run, by call, with the seconds they have been at it."""
        now = time.monotonic()
        return {flight.call.id: (flight.activity, now - flight.began) for flight in self if flight.began is not None}
