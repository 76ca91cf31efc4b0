"""Which queries run and which wait: a bounded queue before two kinds of slots.

The *heavy* slots run a query to its end. They serve the queue in the order of arrival, those first who have the fewest
queries running. The *quick* slot tries a query for a moment, and serves the newest that has not been tried. So a short
query waits for one try at most, whatever waits before it, and a long one waits for a heavy slot after its try.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import anyio

from creditgrid.core.errors import BusyError


class Lane(StrEnum):
    """The kinds of slots."""

    HEAVY = "heavy"
    QUICK = "quick"


@dataclass(eq=False)
class Place:
    """A query's place in the queue, and then its slot."""

    client: str | None
    number: int
    arrived: float
    tried: bool = False  # in the quick lane
    lane: Lane | None = None
    granted: anyio.Event = field(default_factory=anyio.Event)


class QueryQueue:
    """For the event loop's thread.

    Args:
        heavy: heavy slots.
        waiting: queries that may wait for their first try, and that may wait for a heavy slot after it.
        wait_s: seconds that a query waits at most.
        on_wait: takes the seconds that a query has waited for its slot.
    """

    def __init__(self, heavy: int, waiting: int, wait_s: float, on_wait: Callable[[float], object]) -> None:
        self._free = {Lane.HEAVY: heavy, Lane.QUICK: 1}
        self._limit, self._wait_s, self._on_wait = waiting, wait_s, on_wait
        self._waiting: list[Place] = []
        self._running: Counter[str | None] = Counter()
        self._arrivals = 0

    def lengths(self) -> dict[str, int]:
        """How many queries run, and how many wait."""
        return {"running": self._running.total(), "waiting": len(self._waiting)}

    def arrive(self, client: str | None = None) -> Place:
        """A place for a new query of the client, see ``wait``."""
        self._arrivals += 1
        return Place(client, self._arrivals, time.monotonic())

    async def wait(self, place: Place) -> Lane:
        """Wait for a slot; ``release`` it afterwards.

        Raises:
            BusyError: the queue is full, or the query has waited for too long.
        """
        if sum(other.tried == place.tried for other in self._waiting) >= self._limit:
            raise BusyError(f"{len(self._waiting)} queries wait already: try again later")
        place.granted = anyio.Event()
        self._waiting.append(place)
        self._grant()
        started = time.monotonic()
        try:
            with anyio.move_on_after(place.arrived + self._wait_s - started):
                await place.granted.wait()
        except BaseException:  # the client has gone
            self._leave(place)
            raise
        self._on_wait(time.monotonic() - started)
        if place.lane is None:
            self._leave(place)
            raise BusyError(f"other queries run, and none has ended within {self._wait_s:g} s: try again later")
        return place.lane

    def release(self, place: Place) -> None:
        """The query does not run any more."""
        if place.lane is not None:
            self._free[place.lane] += 1
            self._running[place.client] -= 1
            place.tried, place.lane = True, None
            self._grant()

    def _leave(self, place: Place) -> None:
        if place in self._waiting:
            self._waiting.remove(place)
        self.release(place)

    def _grant(self) -> None:
        while self._free[Lane.HEAVY] and self._waiting:
            self._start(min(self._waiting, key=lambda place: (self._running[place.client], place.number)), Lane.HEAVY)
        while self._free[Lane.QUICK] and (untried := [place for place in self._waiting if not place.tried]):
            self._start(min(untried, key=lambda place: (self._running[place.client], -place.number)), Lane.QUICK)

    def _start(self, place: Place, lane: Lane) -> None:
        self._waiting.remove(place)
        self._free[lane] -= 1
        self._running[place.client] += 1
        place.lane = lane
        place.granted.set()
