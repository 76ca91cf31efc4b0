"""What tasks print, warn and log.

The log belongs to a call, so all its tasks have the same one. The logs of the calls that had the task before (it was
split off, or ran again) come first.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from creditgrid.core.errors import NotFoundError
from creditgrid.core.states import FINISHED, State
from creditgrid.core.wire import LogView
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.tables import CHUNK, calls, cells, chunks, earlier_logs, stages, tasks
from creditgrid.service.reading.sweeps import known_sweep, utc
from creditgrid.workers.call_log import BOUND, HEAD, call_logs, log_path
from creditgrid.workers.log_text import LogText, read_log

MOST_EARLIER = 8
"""Earlier calls whose logs are shown, the latest."""
TAIL = 4096
"""Bytes of a log that are shown beside a traceback."""
_CURSOR = re.compile(r"([0-9a-f]{32})-(\d{1,18})-(\d{1,9})")

_KEY = sa.select(tasks.c.key).where(tasks.c.call == calls.c.id).limit(1).scalar_subquery()
_OF_SWEEP: sa.Select[Any] = sa.select(calls.c.id, calls.c.kind, calls.c.state, calls.c.log, _KEY.label("key")).where(
    calls.c.log.in_(sa.bindparam("names", expanding=True)),
    _KEY.is_not(None),
    sa.or_(
        *(
            # No index has the expression with the sweep: the call's is used.
            sa.select(sa.literal(1))
            .where(table.c.call == calls.c.id, table.c.sweep.concat("") == sa.bindparam("sweep"))
            .exists()
            for table in (stages, cells)
        )
    ),
)


@dataclass(frozen=True, slots=True)
class TaskLog:
    """A part of a task's log.

    Args:
        text: UTF-8; what else was printed is replaced.
        next: the position after it, for ``after``; empty while the task has no log.
        dropped: bytes of what was asked for that are not kept.
        ended: whether the call has ended, so that nothing more comes.
    """

    text: bytes
    next: str
    dropped: int
    ended: bool


class Logs:
    """Reads from any thread; ``root`` is that of the artifact store."""

    def __init__(self, ledger: Ledger, root: Path) -> None:
        self._ledger, self._root = ledger, root

    def of_task(self, key: str, after: str = "", tail: int = BOUND) -> TaskLog:
        """The log of a task from a position on; of what is there, about the last ``tail`` bytes.

        Raises:
            NotFoundError: no sweep has a task with this key.
            ValueError: ``after`` is no position.
        """
        known = _CURSOR.fullmatch(after)
        if after and known is None:
            raise ValueError(f"{after[:80]!r} is no position in a log: use X-Log-Next of an earlier answer")
        names, ended = self._names(key)  # before the text, which then is complete if the call has ended
        since = {known[1]: (int(known[2]), int(known[3]))} if known and known[1] in names else {}
        if since:
            names = names[: names.index(next(iter(since))) + 1]
        parts, left = list[LogText](), tail
        for name in names:
            if left <= 0 and parts:
                break
            part = read_log(log_path(self._root, name), *since.get(name, (0, 0)), limit=left)
            parts.insert(0, part)
            left -= len(part.data)
        text = _as_utf8(b"".join(part.data for part in parts), tail)
        last = f"{names[0]}-{parts[-1].end}-{parts[-1].shown}" if names else ""
        return TaskLog(text, last, sum(part.dropped for part in parts), ended)

    def of_sweep(self, sweep: str, limit: int) -> list[LogView]:
        """The logs of the sweep's calls that have printed something, those that were written last first.

        Raises:
            NotFoundError: for an unknown sweep.
        """
        found: list[LogView] = []
        with self._ledger.read() as connection:
            known_sweep(connection, sweep)
            for piece in chunks(self._written(), CHUNK):
                stats = dict(piece)
                rows = {row.log: row for row in connection.execute(_OF_SWEEP, {"sweep": sweep, "names": list(stats)})}
                found += [_view(rows[name], stat) for name, stat in stats.items() if name in rows]
                if len(found) >= limit:
                    break
        return found[:limit]

    def _written(self) -> list[tuple[str, os.stat_result]]:
        """All logs with text, by their names; those that were written last first."""
        found = []
        for entry in call_logs(self._root):
            with suppress(FileNotFoundError):
                stat = entry.stat()
                if stat.st_size > HEAD:
                    found.append((entry.name, stat))
        return sorted(found, key=lambda item: item[1].st_mtime, reverse=True)

    def tail(self, name: str | None) -> str:
        """The end of a call's log; empty where it has none."""
        if not name:
            return ""
        try:
            return _as_utf8(read_log(log_path(self._root, name), limit=TAIL).data, TAIL).decode()
        except OSError as error:
            return f"(the log cannot be read: {error})"

    def _names(self, key: str) -> tuple[list[str], bool]:
        """The logs of the task's call and of earlier ones, the latest first; and whether the call has ended."""
        with self._ledger.read() as connection:
            of_task = sa.select(tasks.c.call).where(tasks.c.key == key)
            call = connection.scalar(of_task)
            if call is None:
                raise NotFoundError(f"there is no task {key[:80]!r}")
            found = connection.execute(sa.select(calls.c.log, calls.c.state).where(calls.c.id == call)).one_or_none()
            c = earlier_logs.c
            earlier = sa.select(c.log).where(c.call == call).order_by(c.id.desc()).limit(MOST_EARLIER)
            names = [found.log if found is not None else None, *connection.scalars(earlier)]
        return [name for name in names if name], found is None or State(found.state) in FINISHED


def _view(row: sa.Row[Any], stat: os.stat_result) -> LogView:
    state, written = State(row.state), stat.st_size - HEAD
    return LogView(call=row.id, kind=row.kind, key=row.key, state=state, bytes=written, written_at=utc(stat.st_mtime))


def _as_utf8(data: bytes, most: int) -> bytes:
    """The end of the text, at most so many bytes of it, without half a character at its start."""
    text = data.decode(errors="replace").encode()
    start = max(0, len(text) - most) if most < BOUND else 0
    while start < len(text) and 0x80 <= text[start] < 0xC0:
        start += 1
    return text[start:]
