"""Which ready calls go to the runner next.

Higher priorities come first. People share the runner within one priority, so that each has about as many calls in
flight as the others, and so do the sweeps of one person. Few calls wait in the runner's own queue, where nothing can
overtake them: enough to keep the machines busy until the next step.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import sqlalchemy as sa

from creditgrid.core.experiments.registry import registry
from creditgrid.service.call_settings import parsed, resources
from creditgrid.service.ledger.queries import ready_calls, ready_sweeps
from creditgrid.service.scheduling.in_flight import InFlight, Recall
from creditgrid.workers.runner import Capacity

AHEAD_S = 1.0
"""Seconds of work that wait in the runner's queue."""
MOST_AHEAD = 64
"""The most calls that wait there, or one for each CPU of a larger cluster."""
SWEEPS_REMEMBERED = 1000
DURATIONS_KEPT = 20
"""The latest calls, whose mean duration turns seconds of work into a number of calls."""

_Turn: TypeAlias = tuple[int, int, int, str | None]
"""Calls in flight, the round of the last call, the place in the line, and the person."""
_Queues: TypeAlias = dict[str | None, list[tuple[int, int, int, str]]]
"""By person: the same of their sweeps."""
Slots: TypeAlias = Mapping[bool, int]
"""How many more calls, by whether they need a GPU; without a GPU in the cluster no call counts as needing one."""


class Dispatcher:
    """Chooses the next calls."""

    def __init__(self, in_flight: InFlight) -> None:
        self._in_flight = in_flight
        self._seconds: deque[float] = deque(maxlen=DURATIONS_KEPT)
        self._round = 0
        self._last_round: dict[str, int] = {}  # by sweep: the round that last chose one of its calls
        self._last_turn: dict[str | None, int] = {}  # by person: the same

    def note_duration(self, seconds: float) -> None:
        """A call took so long."""
        self._seconds.append(seconds)

    def free_slots(self, capacity: Capacity) -> Slots:
        """How many more calls the runner should have.

        With GPUs, calls that need one are counted apart: they wait for other slots, and neither sort may block the
        other.
        """
        waiting = Counter(capacity.gpu > 0 and call.call.resources.gpu > 0 for call in self._in_flight.waiting())
        slots = {False: capacity.cpu, True: capacity.gpu}
        return {gpu: self._ahead(slots[gpu]) - waiting[gpu] for gpu in ((False, True) if capacity.gpu else (False,))}

    def _ahead(self, slots: float) -> int:
        least = max(1, math.ceil(slots))
        mean = max(sum(self._seconds) / len(self._seconds), 1e-6) if self._seconds else AHEAD_S
        return min(max(math.ceil(least * AHEAD_S / mean), least), max(MOST_AHEAD, least))

    def preempt(self, connection: sa.Connection, now: float, slots: Slots) -> None:
        """Take back calls that have not started where a call of higher priority waits for the same slots."""
        waiting = self._in_flight.waiting()
        ready = ready_sweeps(connection, now) if waiting else ()
        if not ready:
            return
        urgent, highest, _ = ready[0]
        lower = [submitted for submitted in waiting if submitted.priority < highest]
        wanted = {_needs_gpu(call, slots) for call in ready_calls(connection, urgent, now, 1)} if lower else set()
        for submitted in lower:
            if (True in slots and submitted.call.resources.gpu > 0) in wanted:
                self._in_flight.recall(submitted, Recall.NOT_STARTED)

    def choose(self, connection: sa.Connection, now: float, slots: Slots) -> list[sa.Row[Any]]:
        """Ready calls in the order in which they run, as many as there are free slots of each sort."""
        free = dict(slots)
        chosen: list[sa.Row[Any]] = []
        for _, level in itertools.groupby(ready_sweeps(connection, now), lambda ready: ready.priority):
            left = sum(max(more, 0) for more in free.values())
            if not left:
                break
            people, sweeps = self._line_up(level, left)
            calls: dict[str, deque[sa.Row[Any]]] = {}
            while people:
                load, turn, order, person = heapq.heappop(people)
                of_sweep, last, n, sweep = heapq.heappop(sweeps[person])
                if sweep not in calls:
                    calls[sweep] = deque(ready_calls(connection, sweep, now, left))
                if calls[sweep]:
                    call = calls[sweep].popleft()
                    gpu = _needs_gpu(call, slots)
                    if free[gpu] > 0:
                        free[gpu] -= 1
                        chosen.append(call)
                        self._round += 1
                        self._last_round[sweep] = self._last_turn[person] = last = turn = self._round
                        load, of_sweep = load + 1, of_sweep + 1
                    heapq.heappush(sweeps[person], (of_sweep, last, n, sweep))
                if sweeps[person]:
                    heapq.heappush(people, (load, turn, order, person))
        if len(self._last_round) > SWEEPS_REMEMBERED:
            latest = sorted(self._last_round.items(), key=lambda item: item[1])
            self._last_round = dict(latest[len(latest) // 2 :])
        return chosen

    def _line_up(self, level: Iterable[sa.Row[str, int, str | None]], left: int) -> tuple[list[_Turn], _Queues]:
        """The people who have these sweeps, and the sweeps of each, both as heaps: who is next comes first.

        That is the person with the fewest calls in flight, then the one that waited longest; of this person's sweeps,
        the same. No more people than free slots, and no more sweeps of each, are lined up.
        """
        of_sweeps, of_people = self._in_flight.by_owner(), self._in_flight.by_person()
        sweeps: _Queues = {}
        for n, ready in enumerate(level):
            turn = (of_sweeps[ready.id], self._last_round.get(ready.id, 0), n, ready.id)
            sweeps.setdefault(ready.owner, []).append(turn)
        people = sorted(
            (of_people[person], self._last_turn.get(person, 0), n, person) for n, person in enumerate(sweeps)
        )[:left]
        return people, {person: sorted(sweeps[person])[:left] for *_, person in people}


def _needs_gpu(call: sa.Row[Any], slots: Slots) -> bool:
    """Whether the call waits for a GPU; False in a cluster without GPUs."""
    kind = registry().kinds.get(call.kind)
    return True in slots and kind is not None and resources(kind, parsed(call.spec)).gpu > 0
