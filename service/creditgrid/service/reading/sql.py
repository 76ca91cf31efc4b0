"""SQL over the results table and the ledger's cells and sweeps: read only, bounded in time, memory, rows and number."""

from __future__ import annotations

import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, TYPE_CHECKING

import pyarrow as pa
import pyarrow.dataset as pads

from creditgrid.core.errors import BusyError, QueryError
from creditgrid.service.reading.sql_process import NO_MEMORY, Request, out_of_memory

if TYPE_CHECKING:
    from creditgrid.service.reading.sql_tables import SqlTables

CONCURRENT = 2
"""Queries that run at the same time; others wait."""
OVERHEAD = 768 * 10**6
"""Bytes that a query's process may take beside DuckDB's own limit: threads, Parquet buffers, the result."""


class Sandbox:
    """Runs queries, each in a process that is ended when it goes out of bounds.

    Args:
        sql_tables: what queries read, as ``results``, ``cells`` and ``sweeps``.
        timeout_s: seconds until a query is stopped, and until one that waits for its turn gives up.
        memory: DuckDB's memory for one query, in bytes.
        max_rows: a result with more rows is refused.
    """

    def __init__(self, sql_tables: SqlTables, timeout_s: float, memory: int, max_rows: int) -> None:
        self._tables = sql_tables
        self._timeout_s, self._memory, self._max_rows = timeout_s, memory, max_rows
        self._slots = threading.BoundedSemaphore(CONCURRENT)
        self._lock = threading.Lock()
        self._idle: list[subprocess.Popen[bytes]] = []
        self._busy: list[subprocess.Popen[bytes]] = []
        self._closed = False

    def query(self, sql: str) -> pa.Table:
        """The result of one SELECT.

        Raises:
            QueryError: when the query is refused, fails, or goes out of bounds.
            BusyError: when other queries left it no turn within the time limit.
        """
        if not self._slots.acquire(timeout=self._timeout_s):
            raise BusyError(f"other queries are running and none ended within {self._timeout_s:g} s: try again later")
        try:
            return self._run(Request(sql, self._named(sql), self._timeout_s, self._memory, self._max_rows))
        finally:
            self._slots.release()

    def close(self) -> None:
        """End the processes; queries that are running fail."""
        with self._lock:
            self._closed = True
            for process in self._busy:
                process.kill()  # whoever waits for it cleans up
            idle, self._idle = self._idle, []
        for process in idle:
            _end(process)

    def _named(self, sql: str) -> Mapping[str, pa.Table | pads.Dataset]:
        tables = {"results": self._tables.results()}
        words = set(re.findall(r"\w+", sql.lower()))
        if "cells" in words:  # they come out of the ledger whole, so only when a query names them
            tables["cells"] = self._tables.cells()
        if "sweeps" in words:
            tables["sweeps"] = self._tables.sweeps()
        return tables

    def _run(self, request: Request) -> pa.Table:
        process = self._take()
        began = time.monotonic()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError):  # it died; why is found out below
                pickle.dump(request, process.stdin)
                process.stdin.flush()
            table = _receive(process.stdout)
        except QueryError:  # it said why, and is ready for the next one
            self._give(process)
            raise
        except EOFError:
            _end(process)
            self._replace(process)
            raise self._death(process.returncode, time.monotonic() - began) from None
        except BaseException:
            _end(process)
            self._replace(process)
            raise
        self._give(process)
        return table

    def _death(self, status: int, seconds: float) -> QueryError:
        if self._closed:
            return QueryError("the service is stopping")
        if status == -signal.SIGALRM:
            return QueryError(f"the query took longer than {self._timeout_s:g} s and was stopped: select less")
        if status in (NO_MEMORY, -signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS):
            return out_of_memory(self._memory)
        return QueryError(f"the process that ran the query ended with status {status} after {seconds:.1f} s")

    def _take(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._closed:
                raise QueryError("the service is stopping")
            process = self._idle.pop() if self._idle else self._start()
            if process.poll() is not None:  # it ended while nobody used it
                _end(process)
                process = self._start()
            self._busy.append(process)
            return process

    def _start(self) -> subprocess.Popen[bytes]:
        # The token and the database's password are none of its business.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CREDITGRID_")}
        allowed = self._memory + OVERHEAD
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "creditgrid.service.reading.sql_process", str(allowed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    def _give(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._busy.remove(process)
            if not self._closed:
                self._idle.append(process)
                return
        _end(process)

    def _replace(self, process: subprocess.Popen[bytes]) -> None:
        """Put a new process in the place of one that ended, so that the next query does not wait for its imports."""
        with self._lock:
            self._busy.remove(process)
            if not self._closed:
                self._idle.append(self._start())


def _receive(replies: IO[bytes]) -> pa.Table:
    parts: list[bytes] = []
    while True:
        header = _exactly(replies, 9)
        tag, length = header[:1], struct.unpack(">Q", header[1:])[0]
        data = _exactly(replies, length)
        if tag == b"B":
            parts.append(data)
        elif tag == b"E":
            raise QueryError(data.decode())
        else:
            with pa.ipc.open_stream(b"".join(parts)) as reader:
                return reader.read_all()


def _exactly(replies: IO[bytes], length: int) -> bytes:
    data = replies.read(length)
    if len(data) < length:
        raise EOFError
    return data


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # what was not sent any more is not wanted either
                pipe.close()
