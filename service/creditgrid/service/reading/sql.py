"""SQL over the tables of `sql_tables`: read only, and bounded in time, memory, rows and number of queries."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
from anyio import CapacityLimiter, create_memory_object_stream, create_task_group, from_thread, to_thread
from anyio.streams.memory import MemoryObjectReceiveStream

from creditgrid.service.reading.sql_pool import Pool
from creditgrid.service.reading.sql_protocol import QUICK_S, Files, Request
from creditgrid.service.reading.sql_queue import Lane, Place, QueryQueue
from creditgrid.service.reading.sql_session import Session

if TYPE_CHECKING:
    from creditgrid.service.reading.sql_tables import SqlTables

HEAVY = 2
"""Queries that run to their end at the same time."""
WAITING = 64
"""Queries that wait for their first try at most, and for a heavy slot after it."""
BUFFERED = 4
"""Frames of an answer that wait for its reader; a small answer needs no more, and frees its slot at once."""
START_S = 60.0
"""Seconds that a new process has to get ready."""
OPTIONAL = frozenset({"curves", "stages"})
"""Tables that are there for queries that name them."""
LISTING = re.compile(r"show|describe|_schema|duckdb_|pragma_|sqlite_|pg_")
"""What a query that lists tables says."""
GRACE_S = 0.25
"""Seconds that a query's process has to end a query by itself; then it is killed."""


@dataclass(frozen=True)
class Query:
    """A SELECT, and the format of its answer. A trusted one may spill to disk and has no row limit."""

    sql: str
    format: str
    trusted: bool = False


class Sandbox:
    """Runs each query in a process that is ended when it exceeds a bound.

    Args:
        sql_tables: what queries read, as ``results``, ``curves``, ``cells``, ``stages`` and ``sweeps``.
        timeout_s: seconds until a query is stopped, its reader included, and until a waiting query gives up.
        memory: DuckDB's memory for one query, in bytes.
        max_rows: an answer with more rows is refused.
        on_wait: takes the seconds that each query has waited for its slot.
    """

    def __init__(
        self,
        sql_tables: SqlTables,
        timeout_s: float,
        memory: int,
        max_rows: int,
        on_wait: Callable[[float], object] = lambda _: None,
    ) -> None:
        self._tables = sql_tables
        self._timeout_s, self._memory, self._max_rows = timeout_s, memory, max_rows
        self._pool = Pool(memory, HEAVY + 2)
        self._threads = CapacityLimiter(HEAVY + 1)
        self.queue = QueryQueue(HEAVY, WAITING, timeout_s, on_wait)

    def start(self) -> None:
        """Have processes ready before queries come. Without, each starts with the query that needs it."""
        self._pool.keep()

    def close(self) -> None:
        """End the processes; running queries fail."""
        self._pool.close()

    @asynccontextmanager
    async def answer(self, query: Query, client: str | None = None) -> AsyncIterator[AsyncIterator[bytes]]:
        """The encoded answer, piece by piece. A query whose reader leaves early, or is cancelled, is stopped.

        Raises:
            QueryError: the query is refused, fails, or exceeds a bound. Where pieces came before, they are worthless.
            BusyError: too many queries wait, or this one has waited for too long.
        """
        place = self.queue.arrive(client)
        if await self.queue.wait(place) is Lane.QUICK:
            frames: list[bytes] = []
            underway = anyio.Event()
            session = self._session(query, underway, frames.append, quick=True)
            try:
                await _perform(session, underway, QUICK_S + GRACE_S, self._threads)
            finally:
                self.queue.release(place)
            if not session.slow:
                session.check()
                yield _each(frames)
                return
            await self.queue.wait(place)
        async with self._streamed(query, place) as pieces:
            yield pieces

    @asynccontextmanager
    async def _streamed(self, query: Query, place: Place) -> AsyncIterator[AsyncIterator[bytes]]:
        sender, receiver = create_memory_object_stream[bytes](BUFFERED)
        underway = anyio.Event()
        session = self._session(query, underway, lambda frame: from_thread.run(sender.send, frame), quick=False)
        error: Exception | None = None
        async with create_task_group() as group:

            async def run() -> None:
                try:
                    await _perform(session, underway, self._timeout_s + GRACE_S, self._threads, group.cancel_scope)
                finally:
                    self.queue.release(place)
                    sender.close()

            group.start_soon(run)
            try:
                yield self._received(receiver, session)
            except Exception as caught:  # raised below: a task group would wrap it
                error = caught
            finally:
                receiver.close()
                session.cancel()
        if error is not None:
            raise error
        if session.overdue:
            session.check()

    @staticmethod
    async def _received(receiver: MemoryObjectReceiveStream[bytes], session: Session) -> AsyncIterator[bytes]:
        async for piece in receiver:
            yield piece
        session.check()

    def _session(self, query: Query, underway: anyio.Event, put: Callable[[bytes], object], quick: bool) -> Session:
        def request(spill: str | None) -> Request:
            return self._request(query, quick, spill)

        def begin() -> None:
            from_thread.run_sync(underway.set)

        return Session(self._pool, self._tables, request, spills=query.trusted, begin=begin, put=put)

    def _request(self, query: Query, quick: bool, spill: str | None) -> Request:
        # What a query does not name is left out, except where it may list the tables: views cost time.
        text = query.sql.lower()
        named = {table for table in OPTIONAL if table in text or LISTING.search(text)}
        files = {"results": Files(*self._tables.results())}
        if "curves" in named:
            files["curves"] = Files(*self._tables.curves())
        ledger = {name: schema for name, schema in self._tables.schemas.items() if name not in OPTIONAL - named}
        return Request(
            query.sql,
            query.format,
            files,
            ledger,
            self._timeout_s,
            self._memory,
            None if query.trusted else self._max_rows,
            quick,
            spill,
        )


async def _each(frames: list[bytes]) -> AsyncIterator[bytes]:
    for frame in frames:
        yield frame


async def _perform(
    session: Session,
    underway: anyio.Event,
    seconds: float,
    threads: CapacityLimiter,
    reader: anyio.CancelScope | None = None,
) -> None:
    """Run the session in a thread, for so many seconds from its start at most; then it is cancelled, with its reader.

    When this is cancelled, so is the session.
    """

    async def limit() -> None:
        try:
            with anyio.move_on_after(START_S):
                await underway.wait()
            await anyio.sleep(seconds)
            session.overdue = True
            if reader is not None:
                reader.cancel()  # it may be taking nothing, so that the thread waits for it
        finally:
            session.cancel()

    async with create_task_group() as group:
        group.start_soon(limit)
        await to_thread.run_sync(session.run, limiter=threads)
        group.cancel_scope.cancel()
