"""SQL over the results, cells and sweeps: read only, and bounded in time, memory, rows and number of queries."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import pyarrow as pa

from creditgrid.core.errors import BusyError, QueryError
from creditgrid.service.reading.sql_process import NO_MEMORY, Request, out_of_memory, receive_table, send_table

if TYPE_CHECKING:
    from creditgrid.service.reading.sql_tables import SqlTables

CONCURRENT = 2
"""Queries that run at the same time; others wait."""
OVERHEAD = 768 * 10**6
"""Bytes that a query's process may take beside DuckDB's own limit: threads, Parquet buffers, the result."""


@dataclass(frozen=True, slots=True)
class _Child:
    """A process that runs ``sql_process``, and the connection to it."""

    process: subprocess.Popen[bytes]
    connection: Connection

    def end(self) -> int:
        """Kill the process if it still runs; returns its exit status."""
        self.process.kill()
        self.connection.close()
        return self.process.wait()


class Sandbox:
    """Runs each query in a process that is ended when it exceeds a bound.

    Args:
        sql_tables: what queries read, as ``results``, ``cells`` and ``sweeps``.
        timeout_s: seconds until a query is stopped, and until a waiting query gives up.
        memory: DuckDB's memory for one query, in bytes.
        max_rows: a result with more rows is refused.
    """

    def __init__(self, sql_tables: SqlTables, timeout_s: float, memory: int, max_rows: int) -> None:
        self._tables = sql_tables
        self._timeout_s, self._memory, self._max_rows = timeout_s, memory, max_rows
        self._slots = threading.BoundedSemaphore(CONCURRENT)
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._busy: list[_Child] = []
        self._closed = False

    def query(self, sql: str) -> pa.Table:
        """The result of one SELECT.

        Raises:
            QueryError: the query is refused, fails, or exceeds a bound.
            BusyError: other queries ran for all of the time limit.
        """
        if not self._slots.acquire(timeout=self._timeout_s):
            raise BusyError(f"other queries are running and none ended within {self._timeout_s:g} s: try again later")
        try:
            return self._run(sql)
        finally:
            self._slots.release()

    def close(self) -> None:
        """End the processes; running queries fail."""
        with self._lock:
            self._closed = True
            for child in self._busy:
                child.process.kill()  # the thread that waits for it closes the connection
            idle, self._idle = self._idle, []
        for child in idle:
            child.end()

    def _run(self, sql: str) -> pa.Table:
        results, words = self._tables.results(), set(re.findall(r"\w+", sql.lower()))
        files, streamed = {}, {}
        if isinstance(results, pa.RecordBatchReader):
            streamed["results"] = results
        else:
            files["results"] = results
        if "cells" in words:  # the ledger's tables are sent whole, so only to queries that name them
            streamed["cells"] = self._tables.cells()
        if "sweeps" in words:
            streamed["sweeps"] = self._tables.sweeps()
        request = Request(sql, files, list(streamed), self._timeout_s, self._memory, self._max_rows)
        child, started = self._take(), time.monotonic()
        try:
            child.connection.send(request)
            for reader in streamed.values():
                send_table(child.connection, reader)
            table, error = receive_table(child.connection), child.connection.recv_bytes().decode()
        except (EOFError, OSError):  # the connection ended, so the process has
            status = child.end()
            self._replace(child)
            raise self._explain_death(status, time.monotonic() - started) from None
        except BaseException:
            child.end()
            self._replace(child)
            raise
        self._give_back(child)
        if error:
            raise QueryError(error)
        return table

    def _explain_death(self, status: int, seconds: float) -> QueryError:
        if self._closed:
            return QueryError("the service is stopping")
        if status == -signal.SIGALRM:
            return QueryError(f"the query took longer than {self._timeout_s:g} s and was stopped: select less")
        if status in (NO_MEMORY, -signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS):
            return out_of_memory(self._memory)
        return QueryError(f"the process that ran the query ended with status {status} after {seconds:.1f} s")

    def _take(self) -> _Child:
        with self._lock:
            if self._closed:
                raise QueryError("the service is stopping")
            child = self._idle.pop() if self._idle else self._start()
            if child.process.poll() is not None:  # it ended while nobody used it
                child.end()
                child = self._start()
            self._busy.append(child)
            return child

    def _start(self) -> _Child:
        # The child does not see the token and the database's password.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CREDITGRID_")}
        ours, theirs = Pipe()
        with theirs:
            arguments = [str(self._memory + OVERHEAD), str(theirs.fileno())]
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "creditgrid.service.reading.sql_process", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a library prints does not mix with what the service prints
                env=environment,
                pass_fds=[theirs.fileno()],
            )
        return _Child(process, ours)

    def _give_back(self, child: _Child) -> None:
        with self._lock:
            self._busy.remove(child)
            if not self._closed:
                self._idle.append(child)
                return
        child.end()

    def _replace(self, child: _Child) -> None:
        """Start a new process for one that ended, so that the next query does not wait for its imports."""
        with self._lock:
            self._busy.remove(child)
            if not self._closed:
                self._idle.append(self._start())
