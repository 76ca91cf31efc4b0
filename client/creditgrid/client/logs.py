"""What tasks print: the text of one task's log as it grows, and of all logs of a sweep."""

from __future__ import annotations

import time
from collections.abc import Iterator

from creditgrid.client.connection import Connection, read, resource
from creditgrid.core.states import State
from creditgrid.core.wire import LogView, Page

PAUSE_S = 0.5
"""Between two looks at a log that is followed."""
SHOWN = 50
"""Logs of a sweep that are read, those that were written last."""
TAIL = 2**16
"""Bytes at the end of each that are read at first."""


class LogReader:
    """Reads the log of a task piece by piece; ``ended`` says whether it is complete."""

    def __init__(self, connection: Connection, key: str) -> None:
        self._connection, self._path = connection, resource("tasks", key, "logs")
        self._after: str | None = None
        self.ended = False

    def read(self, tail: int | None = None) -> str:
        """What was written since the last time; of what is there at first, the last ``tail`` bytes.

        Raises:
            NotFound: if no sweep has a task with this key.
        """
        params = {"after": self._after or None, "tail": tail}
        answer = self._connection.request("GET", self._path, params=params)
        self._after = answer.headers.get("X-Log-Next", "")
        self.ended = answer.headers.get("X-Log-Ended") != "false"
        return answer.content.decode(errors="replace")

    def follow(self, tail: int | None = None) -> Iterator[str]:
        """The text that is there, and then what is written, until the task's call has ended."""
        text = self.read(tail)
        while True:
            if text:
                yield text
            if self.ended:
                return
            time.sleep(PAUSE_S)
            text = self.read()


class SweepLogs:
    """Reads the logs of a sweep's calls."""

    def __init__(self, connection: Connection, sweep: str) -> None:
        self._connection, self._sweep = connection, sweep
        self._readers: dict[int, tuple[LogReader, int]] = {}

    def views(self) -> list[LogView]:
        """The logs that have text, those that were written last first."""
        answer = self._connection.request("GET", resource("sweeps", self._sweep, "logs"), params={"limit": SHOWN})
        return read(answer, Page[LogView]).items

    def new(self, without: State | None = None) -> Iterator[tuple[LogView, str]]:
        """The text that was written since the last time, log by log; at first the end of each.

        Args:
            without: leaves out calls in this state whose logs were not read before.
        """
        for view in reversed(self.views()):
            reader, seen = self._readers.get(view.call, (LogReader(self._connection, view.key), 0))
            if view.bytes != seen and (seen or view.state is not without):
                text = reader.read(None if seen else TAIL)
                self._readers[view.call] = reader, view.bytes
                if text:
                    yield view, text
