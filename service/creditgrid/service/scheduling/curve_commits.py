"""Points of curves are appended to their table while the runs advance, and before their calls count as succeeded.

Nothing here needs a restart: what was not written when the service dies is sent again by the next attempt of its call,
from the run's first point, and the table leaves out what it holds.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
import structlog
from deltalake.exceptions import DeltaError

from creditgrid.core.task import Task
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.queries import parameters_of
from creditgrid.service.results.curves import Curves, RunPoints
from creditgrid.workers.runner import Call, Finished, Point

LIVE_EVERY_S = 2.0
"""Seconds between two appends while runs advance."""
SHARE = 0.3
"""The largest share of the time that appends may take while calls wait for them."""
LONGEST_WAIT_S = 0.5
PAUSE_S = 4.0
"""Seconds before the next try after an append that failed."""
HEADS = 1000
"""Calls whose parameters are remembered."""
POINTS_KEPT = 200_000
"""With so many points that wait, no new call starts."""

log = structlog.get_logger()


class CurveCommits:
    """Collects points and appends them; one thread uses it.

    Args:
        succeeded: notes in the ledger that a call succeeded.
    """

    def __init__(self, ledger: Ledger, curves: Curves, succeeded: Callable[[sa.Connection, Finished], None]) -> None:
        self._ledger, self._curves, self._succeeded = ledger, curves, succeeded
        self._waiting: dict[int, list[Point]] = {}  # by call
        self._heads: OrderedDict[int, RunPoints] = OrderedDict()  # by call, without points
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
    def awaited(self) -> bool:
        """Whether a call that has finished waits for its points, and may soon have them."""
        return bool(self._finished) and not self.resting

    @property
    def resting(self) -> bool:
        """Whether an append has failed a moment ago, and the next one waits."""
        return self.trouble is not None and time.monotonic() < self._last

    @property
    def full(self) -> bool:
        """Whether so many points wait that no new call should run."""
        return self._size >= POINTS_KEPT

    def add(self, call: Call, points: Sequence[Point]) -> None:
        """Take points of a call."""
        if not points:
            return
        if call.id not in self._heads:
            self._heads[call.id] = self._head(call)
        self._waiting.setdefault(call.id, []).extend(points)
        self._size += len(points)

    def owes(self, calls: Iterable[int]) -> bool:
        """Whether points of one of these calls wait."""
        return any(call in self._waiting for call in calls)

    def finish(self, message: Finished) -> None:
        """The call has finished and has no rows: it succeeds when its points are written."""
        self._finished.append(message)

    def due(self, *, idle: bool, hungry: bool = True) -> bool:
        """Whether it is time for an append.

        Args:
            idle: no call runs.
            hungry: a core has nothing to do, so what waits for a finished call may be urgent.
        """
        since = time.monotonic() - self._last
        if self._finished:
            return since >= (0.0 if hungry else self._wait_s)
        return bool(self._waiting) and since >= (0.0 if idle else LIVE_EVERY_S)

    def commit(self) -> bool:
        """Append what waits, and note the calls that succeeded with it; False when the table cannot be written."""
        started = time.monotonic()
        found = [replace(self._heads[call], points=points) for call, points in self._waiting.items()]
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
        while len(self._heads) > HEADS:
            self._heads.popitem(last=False)
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
        self._heads.clear()

    def _head(self, call: Call) -> RunPoints:
        """What the points of the call have in common."""
        tasks = list(call.tasks)
        last = max(tasks, key=_epoch)  # of a training, the last checkpoint
        with self._ledger.read() as connection:
            parents = parameters_of(connection, last.parents.values())
        parameters = {
            f"{role}_{name}": value
            for role, key in last.parents.items()
            for name, value in parents.get(key, {}).items()
        }
        parameters |= _common(tasks)
        sweep = str(call.stamp.get("sweep", ""))
        return RunPoints(last.group, last.key, call.kind, last.version, sweep, parameters, ())


def _common(tasks: Sequence[Task]) -> dict[str, Any]:
    """The parameters that all tasks of the call have with the same value, and their source."""
    first, *others = tasks
    found = {**first.source, **first.params}
    for task in others:
        own = {**task.source, **task.params}
        found = {name: value for name, value in found.items() if name in own and own[name] == value}
    return found


def _epoch(task: Task) -> float:
    found = task.params.get("epoch")
    return found if isinstance(found, int | float) else 0
