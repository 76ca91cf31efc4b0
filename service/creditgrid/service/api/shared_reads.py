"""Reads that requests share: what is read once answers everybody who asks for it, until something changes.

A status that 200 clients poll is read once for each change, in one thread, while they wait for the same read. What was
read stays in memory while it is valid. A change of a sweep itself (see ``Changes``) ends that at once. Steps of calls
do not: there may be hundreds a second, so what they change is read again after a while, which leaves the sweep at least
98 % of the time. Meanwhile pollers get the answer that is there, until it is twice as old as that.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from time import monotonic
from typing import Any, Generic, TypeVar

from anyio import CapacityLimiter, to_thread

from creditgrid.service.ledger.changes import Changes

T = TypeVar("T")

MAX_BYTES = 64 * 2**20
"""Of all that is kept; the longest unused goes first."""
ENTRY_BYTES = 1000
"""What keeping a read takes besides its value, about."""
THREADS = 4
"""Threads that read at a time: others than those of requests, so that a slow request delays no poller."""
LIVE_S = 0.3
"""Progress and the time left change without a write; a sweep that runs is read again after this."""
SHARE = 0.02
"""The share of time that reading one thing again and again may take while calls start and end."""
SLOW_THREADS, SLOW_LIVE_S, SLOW_SHARE = 2, 30.0, 0.2
"""The same for what reads all rows or cells of a sweep, and shows no progress."""


@dataclass(frozen=True, slots=True)
class Read(Generic[T]):
    """What was read.

    Args:
        size: its bytes, about.
        settled: nothing but a change of the sweep itself can change it.
        final: nothing can change it.
    """

    value: T
    size: int
    settled: bool = False
    final: bool = False


@dataclass(frozen=True, slots=True)
class _Kept(Generic[T]):
    read: Read[T]
    version: float  # of the ledger before it was read
    at: float
    seconds: float  # that it took


@dataclass(frozen=True, slots=True)
class _Flight:
    task: asyncio.Task[Any]
    version: int


class SharedReads:
    """Used by one event loop; the reads run in threads.

    Args:
        changes: of the ledger that is read.
        threads: how many read at a time.
        live_s: how old a read that is not settled is, at most, when it is read again.
        share: the share of time that reading one thing may take.
    """

    def __init__(self, changes: Changes, threads: int = THREADS, live_s: float = LIVE_S, share: float = SHARE) -> None:
        self._changes, self._live_s, self._share = changes, live_s, share
        self._kept: OrderedDict[Hashable, _Kept[Any]] = OrderedDict()
        self._flights: dict[Hashable, _Flight] = {}
        self._threads = CapacityLimiter(threads)
        self._bytes = 0

    async def get(self, key: Hashable, read: Callable[[], Read[T]], changed: Callable[[], int]) -> T:
        """What ``read`` returns for this key, now or not long ago; raises what it raises.

        Args:
            key: says what is read; one key always comes with the same arguments.
            changed: the number of the last transaction that makes an earlier read invalid.
        """
        kept = self._kept.get(key)
        if kept is not None and kept.version >= changed():
            age, fresh_s = monotonic() - kept.at, self._fresh_s(kept)
            if age < 2 * fresh_s:
                self._kept.move_to_end(key)
                if age >= fresh_s:
                    self._flight(key, read, changed)
                value: T = kept.read.value
                return value
        # A client that disconnects does not take the read from the others.
        result: T = await asyncio.shield(self._flight(key, read, changed))
        return result

    def _fresh_s(self, kept: _Kept[Any]) -> float:
        """How old the read may be before it is read again, while the sweep itself does not change."""
        if kept.read.settled:
            return math.inf
        if kept.version == self._changes.version:
            return self._live_s
        return min(self._live_s, kept.seconds / self._share)

    def _flight(self, key: Hashable, read: Callable[[], Read[T]], changed: Callable[[], int]) -> asyncio.Task[T]:
        """The read that is under way, or a new one if there is none or if something has changed since it started."""
        flight = self._flights.get(key)
        if flight is None or flight.version < changed():
            version = self._changes.version  # before the read: a change in between makes it invalid
            flight = _Flight(asyncio.create_task(self._read(key, read, version)), version)
            flight.task.add_done_callback(_note_error)
            self._flights[key] = flight
        return flight.task

    async def _read(self, key: Hashable, read: Callable[[], Read[T]], version: int) -> T:
        start = monotonic()
        try:
            found = await to_thread.run_sync(read, limiter=self._threads)
            seconds = monotonic() - start
            self._keep(key, _Kept(found, math.inf if found.final else version, start, seconds))
            return found.value
        finally:
            if (flight := self._flights.get(key)) is not None and flight.task is asyncio.current_task():
                del self._flights[key]

    def _keep(self, key: Hashable, kept: _Kept[Any]) -> None:
        before = self._kept.get(key)
        if before is not None:
            if before.version > kept.version:  # a later read was faster
                return
            self._forget(key)
        if kept.read.size > MAX_BYTES - ENTRY_BYTES:
            return
        self._kept[key] = kept
        self._bytes += kept.read.size + ENTRY_BYTES
        while self._bytes > MAX_BYTES:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: Hashable) -> None:
        self._bytes -= self._kept.pop(key).read.size + ENTRY_BYTES


def _note_error(task: asyncio.Task[Any]) -> None:
    """Everybody who waits gets the error; without anybody, asyncio would log that nobody did."""
    if not task.cancelled():
        task.exception()
