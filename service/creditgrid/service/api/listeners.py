"""Event streams that wait for something new. While nothing changes, one timer looks after all of them."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

from creditgrid.service.ledger.changes import Changes

POLL_S = 0.25
"""Between two looks at what has changed."""


class Listeners:
    """Used by one event loop.

    Args:
        changes: says which sweeps have new events.
        stopping: is set when all streams must end.
    """

    def __init__(self, changes: Changes, stopping: threading.Event) -> None:
        self._changes, self._stopping = changes, stopping
        self._waiting: dict[asyncio.Future[None], tuple[str, int]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, sweep: str, seen: int, timeout_s: float) -> None:
        """Return when the sweep has an event after the transaction ``seen``, the service stops, or time is out."""
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        self._waiting[woken] = sweep, seen
        if self._timer is None:
            self._timer = loop.call_later(POLL_S, self._look)
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(woken, timeout_s)
        finally:
            del self._waiting[woken]

    def _look(self) -> None:
        stopping = self._stopping.is_set()
        for woken, (sweep, seen) in self._waiting.items():
            if (stopping or self._changes.of_events(sweep) > seen) and not woken.done():
                woken.set_result(None)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(POLL_S, self._look) if self._waiting else None
