"""One query and its process, seen from the service."""

from __future__ import annotations

import json
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING

import pyarrow as pa

from creditgrid.core.errors import QueryError
from creditgrid.service.reading.sql_pool import Child, Pool, stopping
from creditgrid.service.reading.sql_protocol import DATA, NEXT, NO_MEMORY, SCAN, Outcome, Request, out_of_memory

if TYPE_CHECKING:
    from creditgrid.service.reading.sql_tables import SqlTables

MAX_SCANS = 64
"""Tables of the ledger that one query may scan."""


class Session:
    """Runs a query in a process of the pool.

    Args:
        pool: the processes.
        sql_tables: what the query may read.
        request: makes the request, given the directory for what does not fit into memory.
        spills: there is such a directory; it is removed when the session ends.
        begin: called when the process is ready and gets the request.
        put: takes the pieces of the answer. It may block, and raise to end the query.
    """

    def __init__(
        self,
        pool: Pool,
        sql_tables: SqlTables,
        request: Callable[[str | None], Request],
        *,
        spills: bool,
        begin: Callable[[], object],
        put: Callable[[bytes], object],
    ) -> None:
        self._pool, self._tables, self._make, self._begin, self._put = pool, sql_tables, request, begin, put
        self._spills = spills
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._cancelled = False
        self._error: BaseException | None = None
        self._ended = False
        self.overdue = False
        """Whether it was cancelled because it took too long."""
        self.slow = False
        """Whether the query does not fit the quick lane."""

    def check(self) -> None:
        """Raise the error of a query that has failed."""
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """Kill the process if the query still runs. Any thread may call this."""
        with self._lock:
            if not self._ended:
                self._cancelled = True
                if self._child is not None:
                    self._child.process.kill()

    def run(self) -> None:
        """Run the query; ``check`` raises its error."""
        try:
            with tempfile.TemporaryDirectory(prefix="creditgrid-") if self._spills else nullcontext() as spill:
                self._run(self._make(spill))
        except Exception as error:
            self._error = error

    def _run(self, request: Request) -> None:
        with self._lock:
            if self._cancelled:
                self._error = self._explain_death(request, 0, 0.0)
                return
            child = self._child = self._pool.take()
        started = time.monotonic()
        try:
            outcome = self._talk(child, request)
        except (EOFError, OSError):  # the connection ended, so the process has
            self._end()
            status = self._pool.discard(child)
            self._error = self._explain_death(request, status, time.monotonic() - started)
        except BaseException as error:  # of the ledger, or of a reader that has gone
            self._end()
            status = self._pool.discard(child)
            failed = isinstance(error, Exception) and not self._cancelled
            self._error = error if failed else self._explain_death(request, status, 0.0)
        else:
            self._end()
            self._pool.give_back(child)
            self.slow = outcome.slow
            if outcome.error:
                self._error = QueryError(outcome.error)

    def _end(self) -> None:
        with self._lock:  # from here on nobody kills the process, which may run another query
            self._ended = True

    def _talk(self, child: Child, request: Request) -> Outcome:
        connection = child.connection
        connection.recv_bytes()  # READY
        self._begin()
        connection.send(request)
        scans: list[Iterator[pa.RecordBatch]] = []
        with ExitStack() as stack:
            snapshot = None
            while True:
                frame = connection.recv_bytes()
                kind, payload = frame[:1], frame[1:]
                if kind == DATA:
                    self._put(payload)
                elif kind == SCAN:
                    if len(scans) == MAX_SCANS:
                        raise QueryError(
                            f"the query reads cells, stages and sweeps more than {MAX_SCANS} times: read them once"
                        )
                    snapshot = snapshot or stack.enter_context(self._tables.snapshot())
                    scans.append(snapshot.scan(**json.loads(payload)))
                elif kind == NEXT:
                    batch = next(scans[int(payload)], None)
                    connection.send_bytes(b"" if batch is None else batch.serialize())
                else:
                    return Outcome.load(payload)

    def _explain_death(self, request: Request, status: int, seconds: float) -> Exception | None:
        if self._pool.closed:
            return stopping()
        if request.quick and self._cancelled:
            self.slow = True
            return None
        if status == -signal.SIGALRM or self.overdue:
            return QueryError(f"the query took longer than {request.timeout_s:g} s and was stopped: select less")
        if self._cancelled:
            return QueryError("the reader of the query has gone")
        if status in (NO_MEMORY, -signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS):
            return out_of_memory(request.memory)
        return QueryError(f"the process that ran the query ended with status {status} after {seconds:.1f} s")
