"""Whose turn it is: which ready calls go to the runner next.

Higher priorities come first, whatever waits below. Sweeps of one priority take turns, so that each has about as many
calls in flight as the others. Few calls wait in the runner's own queue, where nothing can overtake them: as many as
keep the machines busy until the next ones come.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from typing import Any

import sqlalchemy as sa

from creditgrid.service import db
from creditgrid.service.flights import Flights, Recalled
from creditgrid.workers.runner import Capacity

AHEAD_S = 1.0
"""Seconds of work that wait in the runner's queue."""
MOST_AHEAD = 64
"""Calls that wait there at most, or one for each CPU of a larger cluster."""
SWEEPS_REMEMBERED = 1000
LEARNED_FROM = 20
"""The latest calls whose durations tell how many are seconds of work."""


class Turns:
    """Chooses calls; it knows of what has run how long calls take."""

    def __init__(self, flights: Flights) -> None:
        self._flights = flights
        self._seconds: deque[float] = deque(maxlen=LEARNED_FROM)
        self._turn = 0
        self._last: dict[str, int] = {}  # the turn that a sweep had last

    def learn(self, seconds: float) -> None:
        """Note how long a call took."""
        self._seconds.append(seconds)

    def room(self, capacity: Capacity) -> int:
        """How many more calls the runner should have."""
        slots = max(1, math.ceil(capacity.cpu))
        mean = max(sum(self._seconds) / len(self._seconds), 1e-6) if self._seconds else AHEAD_S
        ahead = min(max(math.ceil(slots * AHEAD_S / mean), slots), max(MOST_AHEAD, slots))
        return ahead - len(self._flights.waiting())

    def make_way(self, connection: sa.Connection, now: float) -> None:
        """Take back calls that nothing has begun where something of a higher priority is ready."""
        waiting = self._flights.waiting()
        if waiting and (ready := db.ready_sweeps(connection, now)):
            _, highest = ready[0]
            for flight in waiting:
                if flight.priority < highest:
                    self._flights.recall(flight, Recalled.FOR_ANOTHER)

    def choose(self, connection: sa.Connection, now: float, room: int) -> list[sa.Row[Any]]:
        """Up to ``room`` ready calls in the order of their turns."""
        chosen: list[sa.Row[Any]] = []
        flying = self._flights.by_sweep()
        for _, level in itertools.groupby(db.ready_sweeps(connection, now), lambda ready: ready[1]):
            left = room - len(chosen)
            # Who has least in flight comes first, and of those who waited longest; more than there is room for, none.
            first = sorted((flying[sweep], self._last.get(sweep, 0), n, sweep) for n, (sweep, _) in enumerate(level))
            turns = first[:left]
            calls = {sweep: deque(db.ready_calls(connection, sweep, now, left)) for *_, sweep in turns}
            while turns and len(chosen) < room:
                load, _, order, sweep = heapq.heappop(turns)
                chosen.append(calls[sweep].popleft())
                self._turn += 1
                self._last[sweep] = self._turn
                if calls[sweep]:
                    heapq.heappush(turns, (load + 1, self._turn, order, sweep))
            if len(chosen) >= room:
                break
        if len(self._last) > SWEEPS_REMEMBERED:
            self._last = dict(sorted(self._last.items(), key=lambda item: item[1])[len(self._last) // 2 :])
        return chosen
