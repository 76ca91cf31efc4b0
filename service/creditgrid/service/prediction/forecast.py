"""Forecasts: the time of a plan before it starts, and the time left of a sweep.

Both come from the same parts: the work of open calls, the throughput of their kinds, and how many run at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from creditgrid.core.experiments.registry import registry
from creditgrid.core.task import Resources
from creditgrid.core.work import Work
from creditgrid.service.call_settings import Asked, asked_resources
from creditgrid.service.ledger.tables import UNKNOWN
from creditgrid.service.prediction.calibration import Calibrations
from creditgrid.service.prediction.makespan import Batch, Running, makespan
from creditgrid.service.prediction.throughput import Rates, Throughput
from creditgrid.workers.runner import Capacity

HANDOVER_S = 0.1
"""Between the end of calls and the start of those that wait for them."""
COMMIT_S = 0.3
"""Until the last rows are in the table."""
TRUSTED_PART = 0.2
"""From this part of a call on, its own progress alone says what is left; before, its prediction does as well."""


class Alike(NamedTuple):
    """Calls of one kind, level and order of magnitude: how many, and their work in all."""

    kind: str
    level: int
    scale: int
    planned: int
    open: int
    work: Work


class InProgress(NamedTuple):
    """A call that runs."""

    kind: str
    level: int
    scale: int
    work: Work | None
    resources: Resources
    elapsed_s: float
    left_s: float | None
    """By its own progress since it was first reported; None before that."""
    part: float
    """The part of it that is done."""


class Prediction(NamedTuple):
    """Seconds, each None if unknown: on this cluster, of computing, and of computing by kind."""

    seconds: float | None
    compute_seconds: float | None
    by_kind: Mapping[str, float | None]


class Forecasts:
    """May be used from any thread.

    Args:
        throughput: of all kinds.
        calibrations: what it starts from.
        capacity: of the cluster, now.
    """

    def __init__(self, throughput: Throughput, calibrations: Calibrations, capacity: Callable[[], Capacity]) -> None:
        self.throughput, self.calibrations = throughput, calibrations
        self._capacity = capacity

    def capacity(self) -> Capacity:
        """Of the cluster; before it has started, of this machine."""
        found = self._capacity()
        return found if found.cpu > 0 else Capacity(float(os.cpu_count() or 1), found.gpu, found.nodes)

    def of_plan(self, calls: Sequence[Alike], asked: Asked) -> Prediction:
        """What these calls will take, none of which has started; with the resources that the spec asks for."""
        by_kind: dict[str, float | None] = {}
        for alike in calls:
            seconds = self._seconds(alike, asked)
            before = by_kind.get(alike.kind, 0.0)
            by_kind[alike.kind] = None if seconds is None or before is None else before + seconds
        known = [seconds for seconds in by_kind.values() if seconds is not None]
        if len(known) < len(by_kind):
            return Prediction(None, None, by_kind)
        return Prediction(self._wall(calls, (), asked), sum(known), by_kind)

    def left(self, calls: Sequence[Alike], running: Sequence[InProgress], asked: Asked) -> float | None:
        """The seconds until all these calls have ended; None if that of one is unknown."""
        return self._wall(calls, running, asked)

    def _wall(self, calls: Sequence[Alike], running: Sequence[InProgress], asked: Asked) -> float | None:
        capacity = self.capacity()
        batches: list[Batch] = []
        started: list[Running] = []
        for number, alike in enumerate(calls):
            own = [call for call in running if (call.kind, call.level, call.scale) == alike[:3]]
            waiting = max(alike.open - len(own), 0)
            work = alike.work
            for call in own:
                if call.work is not None:
                    work = work.plus(call.work.times(-1.0))
            rates, resources = self._rates(alike.kind, asked), self._resources(alike.kind, asked)
            each = 0.0
            if waiting:
                if alike.scale == UNKNOWN or rates is None:
                    return None
                each = max(rates.seconds(Work(*(max(part, 0.0) for part in work)), waiting), 0.0) / waiting
            batches.append(Batch(alike.level, alike.planned, waiting, each, resources, len(own)))
            for call in own:
                left = _left(call, self._rates(call.kind, asked, call.resources))
                if left is None:
                    return None
                started.append(Running(number, left, call.resources))
        levels = {batch.level for batch in batches if batch.open or batch.running}
        if not levels:
            return 0.0
        return makespan(batches, started, capacity.cpu, capacity.gpu) + HANDOVER_S * len(levels) + COMMIT_S

    def _seconds(self, alike: Alike, asked: Asked) -> float | None:
        rates = self._rates(alike.kind, asked)
        return None if rates is None or alike.scale == UNKNOWN else rates.seconds(alike.work, alike.open)

    def _rates(self, kind: str, asked: Asked, resources: Resources | None = None) -> Rates | None:
        needs = resources or self._resources(kind, asked)
        return self.throughput.rates(kind, gpu=needs.gpu > 0 and self._capacity().gpu > 0)

    def _resources(self, kind: str, asked: Asked) -> Resources:
        known = registry().kinds.get(kind)
        found = Resources() if known is None else asked_resources(known, asked)
        return found if self._capacity().gpu > 0 else Resources(found.cpu, 0.0)


def _left(call: InProgress, rates: Rates | None) -> float | None:
    """The seconds that a running call has left: by its own progress, and early in it by its work as well."""
    predicted = None
    if call.work is not None and rates is not None:
        whole = rates.seconds(call.work)
        late = call.elapsed_s - whole  # a call that is overdue is slower than predicted: it is not about to end
        predicted = whole * (1 - call.part) if call.part else max(-late, late / 2) + 0.05 * whole
    if call.left_s is None:
        return predicted
    if predicted is None:
        return call.left_s
    own = min(call.part / TRUSTED_PART, 1.0)
    return own * call.left_s + (1 - own) * predicted


def alike_of(row: Any) -> Alike:
    """A row of the ledger's backlog; rounding may leave a little less than nothing of its work."""
    work = Work(*(max(part, 0.0) for part in (row.launches, row.flops, row.elements)))
    return Alike(row.kind, row.level, row.scale, row.planned, row.open, work)
