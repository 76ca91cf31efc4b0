"""Whose turn it is: which ready calls go to the runner next.

Higher priorities come first, whatever waits below. Sweeps of one priority take turns, so that each has about as many
calls in flight as the others. Few calls wait in the runner's own queue, where nothing can overtake them: as many as
keep the machines busy until the next ones come.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, TypeAlias

import sqlalchemy as sa

from creditgrid.core.experiments.registry import registry
from creditgrid.service.ledger import tables
from creditgrid.service.scheduling.call_settings import parsed, resources
from creditgrid.service.scheduling.in_flight import Flights, Recalled
from creditgrid.workers.runner import Capacity

AHEAD_S = 1.0
"""Seconds of work that wait in the runner's queue."""
MOST_AHEAD = 64
"""Calls that wait there at most, or one for each CPU of a larger cluster."""
SWEEPS_REMEMBERED = 1000
LEARNED_FROM = 20
"""The latest calls whose durations tell how many are seconds of work."""

Room: TypeAlias = Mapping[bool, int]
"""How many more calls, by whether they need a GPU; without a GPU in the cluster there is one sort."""


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

    def room(self, capacity: Capacity) -> Room:
        """How many more calls the runner should have; with GPUs, those that need one are counted apart.

        They wait for other slots than the rest does, and neither may fill the queue before the other.
        """
        waiting = Counter(capacity.gpu > 0 and flight.call.resources.gpu > 0 for flight in self._flights.waiting())
        slots = {False: capacity.cpu, True: capacity.gpu}
        return {gpu: self._ahead(slots[gpu]) - waiting[gpu] for gpu in ((False, True) if capacity.gpu else (False,))}

    def _ahead(self, slots: float) -> int:
        least = max(1, math.ceil(slots))
        mean = max(sum(self._seconds) / len(self._seconds), 1e-6) if self._seconds else AHEAD_S
        return min(max(math.ceil(least * AHEAD_S / mean), least), max(MOST_AHEAD, least))

    def make_way(self, connection: sa.Connection, now: float, room: Room) -> None:
        """Take back calls that nothing has begun where one of a higher priority is ready that waits for the same."""
        waiting = self._flights.waiting()
        ready = tables.ready_sweeps(connection, now) if waiting else ()
        if not ready:
            return
        urgent, highest = ready[0]
        lower = [flight for flight in waiting if flight.priority < highest]
        sorts = {_sort(call, room) for call in tables.ready_calls(connection, urgent, now, 1)} if lower else set()
        for flight in lower:
            if (True in room and flight.call.resources.gpu > 0) in sorts:
                self._flights.recall(flight, Recalled.FOR_ANOTHER)

    def choose(self, connection: sa.Connection, now: float, room: Room) -> list[sa.Row[Any]]:
        """Ready calls in the order of their turns, as many of each sort as there is room for."""
        left_of = dict(room)
        chosen: list[sa.Row[Any]] = []
        flying = self._flights.by_sweep()
        for _, level in itertools.groupby(tables.ready_sweeps(connection, now), lambda ready: ready[1]):
            left = sum(max(more, 0) for more in left_of.values())
            if not left:
                break
            # Who has least in flight comes first, and of those who waited longest; more than there is room for, none.
            turns = sorted((flying[sweep], self._last.get(sweep, 0), n, sweep) for n, (sweep, _) in enumerate(level))
            del turns[left:]
            calls = {sweep: deque(tables.ready_calls(connection, sweep, now, left)) for *_, sweep in turns}
            while turns:
                load, last, order, sweep = heapq.heappop(turns)
                if not calls[sweep]:
                    continue
                call = calls[sweep].popleft()
                sort = _sort(call, room)
                if left_of[sort] > 0:
                    left_of[sort] -= 1
                    chosen.append(call)
                    self._turn += 1
                    self._last[sweep] = last = self._turn
                    load += 1
                heapq.heappush(turns, (load, last, order, sweep))
        if len(self._last) > SWEEPS_REMEMBERED:
            self._last = dict(sorted(self._last.items(), key=lambda item: item[1])[len(self._last) // 2 :])
        return chosen


def _sort(call: sa.Row[Any], room: Room) -> bool:
    """Whether the call is one of those that need a GPU, where there is one."""
    kind = registry().kinds.get(call.kind)
    return True in room and kind is not None and resources(kind, parsed(call.spec)).gpu > 0
