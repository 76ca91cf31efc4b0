"""Upkeep in the background: the tables stay small, and what dead writers left is deleted.

It has a thread of its own, so nothing waits for a compaction that takes seconds. A duty that fails is logged and tried
again, while sweeps continue.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog
from deltalake.exceptions import DeltaError
from sqlalchemy.exc import OperationalError

from creditgrid.core.errors import CreditGridError
from creditgrid.service.results.upkeep import Upkeep
from creditgrid.service.retention import Retention

QUERY_GRACE_S = 2 * 3600.0
"""Files that a table no longer uses are kept so long: no query, and hardly any download, takes longer."""
LONGEST_PAUSE_S = 600.0
"""The pause after a failure doubles up to this, so that attempts do not fill a full disk."""
STOP_WAIT_S = 10.0

log = structlog.get_logger()


@dataclass(slots=True)
class _Duty:
    """Something to do at intervals; ``due`` is a time of the monotonic clock."""

    name: str
    every_s: float
    do: Callable[[], object]
    due: float = 0.0
    done: int = 0
    failed: int = 0
    in_a_row: int = 0


def _of_table(name: str, upkeep: Upkeep) -> list[_Duty]:
    return [
        _Duty(f"compact{name}", 5.0, upkeep.compact),
        _Duty(f"checkpoint{name}", 5.0, upkeep.checkpoint),
        _Duty(f"vacuum{name}", 60.0, lambda: upkeep.vacuum(QUERY_GRACE_S)),
    ]


class Maintenance:
    """Runs the duties of ``upkeeps`` and ``retention`` from ``start`` to ``stop``.

    ``upkeeps`` are those of the tables, by what the names of their duties end with.

    ``flushes`` write what other parts keep in memory; they are done once a minute, and once more at the stop.
    """

    def __init__(
        self,
        upkeeps: Mapping[str, Upkeep],
        retention: Retention,
        flushes: Mapping[str, Callable[[], object]] | None = None,
    ) -> None:
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._duties = [duty for name, upkeep in upkeeps.items() for duty in _of_table(name, upkeep)]
        self._duties += [_Duty("tidy", 600.0, retention.tidy), _Duty("logs", 10.0, retention.bound_logs)]
        self._flushes = [_Duty(name, 60.0, flush) for name, flush in (flushes or {}).items()]
        self._duties += self._flushes

    def start(self) -> None:
        """Start, with each duty once."""
        self._thread = threading.Thread(target=self._run, name="creditgrid-maintenance", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop after the current duty. A long compaction ends with the process, as in a crash."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(STOP_WAIT_S)
        for duty in self._flushes:
            self._do(duty)

    def counts(self) -> dict[str, tuple[int, int]]:
        """For each duty: how often it was done, and how often it failed."""
        return {duty.name: (duty.done, duty.failed) for duty in self._duties}

    def step(self) -> float:
        """Do the due duties; returns the seconds until the next."""
        for duty in self._duties:
            if self._stopping.is_set():
                break
            if duty.due <= time.monotonic():
                self._do(duty)
        return max(0.0, min(duty.due for duty in self._duties) - time.monotonic())

    def _do(self, duty: _Duty) -> None:
        try:
            duty.do()
        except Exception as error:  # sweeps do not need it for a while
            duty.failed += 1
            duty.in_a_row += 1
            expected = isinstance(error, OSError | DeltaError | CreditGridError | OperationalError)
            log.warning(
                "maintenance failed and is tried again later", duty=duty.name, error=str(error), exc_info=not expected
            )
        else:
            duty.done += 1
            duty.in_a_row = 0
        duty.due = time.monotonic() + min(duty.every_s * 2**duty.in_a_row, max(duty.every_s, LONGEST_PAUSE_S))

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._stopping.wait(self.step())
