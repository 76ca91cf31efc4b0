"""Upkeep in the background: the results table stays small, and what dead writers left goes.

One thread, beside the scheduler's: a compaction that takes seconds keeps nobody waiting, and what goes wrong here is
told and tried again, while sweeps go on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from deltalake.exceptions import DeltaError
from sqlalchemy.exc import OperationalError

from creditgrid.core.errors import CreditGridError
from creditgrid.service.results.table import Results
from creditgrid.service.retention import Retention

QUERY_GRACE_S = 2 * 3600.0
"""Files that are no part of the results table any more are kept so long: no query, and hardly a download, is slower."""
LONGEST_PAUSE_S = 600.0
"""Between two tries at what fails; up to here the pause doubles, so that a full disk is not filled with attempts."""
STOP_WAIT_S = 10.0

log = structlog.get_logger()


@dataclass(slots=True)
class _Duty:
    """Something that is done every so often; ``due`` is on the monotonic clock."""

    name: str
    every_s: float
    do: Callable[[], object]
    due: float = 0.0
    done: int = 0
    failed: int = 0
    in_a_row: int = 0


@dataclass(slots=True)
class Maintenance:
    """Keeps ``results`` and the artifact store below ``retention`` in order, from ``start`` to ``stop``."""

    results: Results
    retention: Retention
    _duties: list[_Duty] = field(init=False)
    _stopping: threading.Event = field(init=False, default_factory=threading.Event)
    _thread: threading.Thread | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._duties = [
            _Duty("compact", 5.0, self.results.compact),
            _Duty("checkpoint", 5.0, self.results.checkpoint),
            _Duty("vacuum", 60.0, lambda: self.results.vacuum(QUERY_GRACE_S)),
            _Duty("tidy", 600.0, self.retention.tidy),
        ]

    def start(self) -> None:
        """Begin, with everything once."""
        self._thread = threading.Thread(target=self._run, name="creditgrid-maintenance", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after what is being done; a long compaction is left to end with the process, as a crash would end it."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(STOP_WAIT_S)

    def counts(self) -> dict[str, tuple[int, int]]:
        """By duty: how often it was done, and how often it failed."""
        return {duty.name: (duty.done, duty.failed) for duty in self._duties}

    def step(self) -> float:
        """Do what is due; returns the seconds until something is again."""
        for duty in self._duties:
            if self._stopping.is_set():
                break
            if duty.due <= time.monotonic():
                self._do(duty)
        return max(0.0, min(duty.due for duty in self._duties) - time.monotonic())

    def _do(self, duty: _Duty) -> None:
        try:
            duty.do()
        except Exception as error:  # sweeps can do without, for a while
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
