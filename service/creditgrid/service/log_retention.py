"""Keeps the logs of calls small: each of them, and all together, whatever tasks print.

A call's worker bounds its log itself. What it cannot bound (a process that prints after the call's end, C code that
holds the interpreter) is bounded here. The logs of open calls are never removed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa
import structlog

from creditgrid.core.states import OPEN
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.tables import calls, chunks, one_of
from creditgrid.workers.call_log import BOUND, HEAD, call_logs, compact_log, trim_log

MOST_BYTES = 2**31
MOST_FILES = 20_000
"""Of all logs together: the oldest go first."""
ROOM = 0.9
"""The share of these that is left full, so that not every look removes a few."""
TOO_LONG = HEAD + 2 * BOUND
HOLLOW_KEPT_S = 60.0
"""A log with a hole is written again so long after its last text, when its call has ended."""
EMPTY_KEPT_S = 3600.0
"""A log without text was left by a worker that was killed, or belongs to a call that runs."""

log = structlog.get_logger()


class LogRetention:
    """Of the logs below the artifact store's ``root``."""

    def __init__(self, ledger: Ledger, root: Path) -> None:
        self._ledger, self._root = ledger, root

    def bound(self) -> int:
        """Bound each log and all together; returns how many were removed.

        Raises:
            OSError: one cannot be trimmed, written or removed.
        """
        found, now = list(self._logs()), time.time()
        for path, stat in found:
            if stat.st_blocks * 512 > TOO_LONG:
                trim_log(path)
        hollow = [path for path, stat in found if stat.st_size > TOO_LONG and now - stat.st_mtime > HOLLOW_KEPT_S]
        for path in self._without_open(hollow):
            compact_log(path)
        empty = [path for path, stat in found if stat.st_size <= HEAD and now - stat.st_mtime > EMPTY_KEPT_S]
        sizes = {path: min(stat.st_blocks * 512, TOO_LONG) for path, stat in sorted(found, key=_age)}
        gone = self._without_open([*empty, *self._surplus(sizes)])
        for path in gone:
            path.unlink(missing_ok=True)
        if len(gone) > len(empty):
            log.info("the oldest logs of calls were removed", logs=len(gone))
        return len(gone)

    def older_than(self, seconds: float) -> list[Path]:
        """Logs that nobody has written for so long, without those of open calls."""
        now = time.time()
        return self._without_open([path for path, stat in self._logs() if now - stat.st_mtime > seconds])

    def _logs(self) -> Iterator[tuple[Path, os.stat_result]]:
        for entry in call_logs(self._root):
            with suppress(FileNotFoundError):
                yield Path(entry.path), entry.stat()

    def _surplus(self, sizes: dict[Path, int]) -> Iterator[Path]:
        """The first of these, until the rest fits."""
        left, total = len(sizes), sum(sizes.values())
        if left <= MOST_FILES and total <= MOST_BYTES:
            return
        for path, size in sizes.items():
            if left <= ROOM * MOST_FILES and total <= ROOM * MOST_BYTES:
                return
            left, total = left - 1, total - size
            yield path

    def _without_open(self, paths: list[Path]) -> list[Path]:
        """Those that no call writes, or will write."""
        kept = set[str]()
        with self._ledger.read() as connection:
            for piece in chunks(path.name for path in paths):
                mine = sa.select(calls.c.log).where(calls.c.log.in_(piece), one_of(calls.c.state, OPEN))
                kept.update(connection.scalars(mine))
        return [path for path in paths if path.name not in kept]


def _age(found: tuple[Path, os.stat_result]) -> float:
    return found[1].st_mtime
