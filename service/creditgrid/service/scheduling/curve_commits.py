"""Points of curves are appended to their table while the runs advance, and before their calls count as succeeded.

Nothing here needs a restart: what was not written when the service dies is sent again by the next attempt of its call,
from the run's first point, and the table leaves out what it holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
import structlog
from deltalake.exceptions import DeltaError

from creditgrid.core.task import Task
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.results.curves import Curves, RunPoints
from creditgrid.workers.runner import Call, Finished, Point

LIVE_EVERY_S = 2.0
"""Seconds between two appends while runs advance."""
SHARE = 0.2
"""The largest share of the time that appends may take while calls wait for them."""
LONGEST_WAIT_S = 1.0
PAUSE_S = 4.0
"""Seconds before the next try after an append that failed."""
POINTS_KEPT = 200_000
"""With so many points that wait, no new call starts."""

log = structlog.get_logger()


@dataclass(slots=True)
class _Waiting:
    """The points of a call that wait, and what they have in common."""

    run: str
    stage: str
    kind: str
    kind_version: int
    sweep: str
    parameters: Mapping[str, Any]
    points: list[Point] = field(default_factory=list)


class CurveCommits:
    """Collects points and appends them; one thread uses it.

    Args:
        succeeded: notes in the ledger that a call succeeded.
    """

    def __init__(self, ledger: Ledger, curves: Curves, succeeded: Callable[[sa.Connection, Finished], None]) -> None:
        self._ledger, self._curves, self._succeeded = ledger, curves, succeeded
        self._waiting: dict[int, _Waiting] = {}  # by call
        self._finished: list[Finished] = []
        self._size = 0
        self._last = 0.0
        self._wait_s = 0.0  # for calls that have finished
        self.trouble: str | None = None
        """Why points cannot be written, while they cannot."""

    @property
    def waiting(self) -> bool:
        """Whether points wait."""
        return bool(self._waiting)

    @property
    def full(self) -> bool:
        """Whether so many points wait that no new call should run."""
        return self._size >= POINTS_KEPT

    def add(self, call: Call, points: Sequence[Point]) -> None:
        """Take points of a call."""
        if not points:
            return
        if call.id not in self._waiting:
            self._waiting[call.id] = _head(call)
        self._waiting[call.id].points.extend(points)
        self._size += len(points)

    def owes(self, calls: Iterable[int]) -> bool:
        """Whether points of one of these calls wait."""
        return any(call in self._waiting for call in calls)

    def finish(self, message: Finished) -> None:
        """The call has finished and has no rows: it succeeds when its points are written."""
        self._finished.append(message)

    def due(self, *, idle: bool) -> bool:
        """Whether it is time for an append; ``idle``: no call runs."""
        since = time.monotonic() - self._last
        if self._finished:
            return since >= (0.0 if idle else self._wait_s)
        return bool(self._waiting) and since >= (0.0 if idle else LIVE_EVERY_S)

    def commit(self) -> bool:
        """Append what waits, and note the calls that succeeded with it; False when the table cannot be written."""
        started = time.monotonic()
        found = [
            RunPoints(own.run, own.stage, own.kind, own.kind_version, own.sweep, own.parameters, own.points)
            for own in self._waiting.values()
        ]
        try:
            if found:
                self._curves.add(found)
        except (OSError, DeltaError) as error:
            # Nothing is lost: the points stay here, and if the service dies their calls run again.
            self._last = time.monotonic() + PAUSE_S
            self.trouble = f"points cannot be written to the table of curves: {error}"
            log.error("append of curves failed", error=str(error))
            return False
        self._waiting, self._size = {}, 0
        finished, self._finished = self._finished, []
        if finished:
            with self._ledger.write() as connection:
                for message in finished:
                    self._succeeded(connection, message)
        self.trouble = None
        self._last = time.monotonic()
        self._wait_s = min((self._last - started) * (1 / SHARE - 1), LONGEST_WAIT_S)
        return True

    def forget(self) -> None:
        """Drop what waits: its calls run again."""
        self._waiting, self._finished, self._size, self.trouble = {}, [], 0, None


def _head(call: Call) -> _Waiting:
    tasks = list(call.tasks)
    last = tasks[-1]
    sweep = str(call.stamp.get("sweep", ""))
    return _Waiting(last.group, last.key, call.kind, last.version, sweep, _common(tasks))


def _common(tasks: Sequence[Task]) -> dict[str, Any]:
    """The parameters that all tasks of the call have with the same value, and their source."""
    first, *others = tasks
    found = {**first.source, **first.params}
    for task in others:
        own = {**task.source, **task.params}
        found = {name: value for name, value in found.items() if name in own and own[name] == value}
    return found
