"""Queries in their process: run one after the other, encoded, and sent to the service."""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import duckdb
import pyarrow as pa

from creditgrid.core.errors import QueryError
from creditgrid.service.reading.formats import BATCH_ROWS, ENCODERS
from creditgrid.service.reading.sql_database import admit, checked, open_database, presentable
from creditgrid.service.reading.sql_protocol import (
    DATA,
    END,
    FRAME_BYTES,
    QUICK_S,
    READY,
    SMALL_ANSWER,
    Outcome,
    Request,
    out_of_memory,
)
from creditgrid.service.reading.sql_scan import Link

HELD_BYTES = 16 * 2**20
"""Bytes of Arrow data that are held back: while an answer is smaller, an error can still take its place."""
KNOWN = (duckdb.Error, pa.ArrowException, OSError, RuntimeError, ValueError, MemoryError)
"""What a query raises that is refused or fails."""


class _Slow(Exception):
    """The query does not fit the quick lane."""


def serve(connection: Connection) -> None:
    """Answer requests until the service closes the connection."""
    link, database = Link(connection), open_database()
    while True:
        link.send(READY, b"")
        try:
            request: Request = connection.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, request.timeout_s)
        link.reset()
        with database:
            outcome = _outcome(request, database, link)
        signal.setitimer(signal.ITIMER_REAL, 0)
        link.send(END, outcome.dump())
        database = open_database()  # now, while nobody waits


def _outcome(request: Request, database: duckdb.DuckDBPyConnection, link: Link) -> Outcome:
    try:
        answer(request, database, link)
    except _Slow:
        return Outcome(ok=False, slow=True)
    except QueryError as error:
        return Outcome(ok=False, error=str(error))
    return Outcome(ok=True)


def answer(request: Request, database: duckdb.DuckDBPyConnection, link: Link) -> None:
    """Run the query and send its encoded answer.

    Raises:
        QueryError: it is refused or fails. Part of the answer may have been sent.
    """
    with _time_limit(database, QUICK_S if request.quick else None) as expired:
        try:
            admit(database, request, link)
            relation = presentable(database.sql(checked(request.sql)))
            _send(relation.to_arrow_reader(BATCH_ROWS), request, link, expired)
        except (_Slow, QueryError, ConnectionError, EOFError):
            raise
        except Exception as error:
            if expired.is_set():
                raise _Slow from error
            if isinstance(error, KNOWN):
                raise _explained(error, request.memory) from error
            raise


def _explained(error: Exception, memory: int) -> QueryError:
    exhausted = isinstance(error, duckdb.OutOfMemoryException | MemoryError | pa.ArrowMemoryError)
    if exhausted or "Out of Memory" in str(error):  # what the last copy, to Arrow, raises
        return out_of_memory(memory)
    return QueryError(str(error))


@contextmanager
def _time_limit(database: duckdb.DuckDBPyConnection, seconds: float | None) -> Iterator[threading.Event]:
    """Interrupt the query after ``seconds``; the event says that this has happened."""
    expired = threading.Event()
    if seconds is None:
        yield expired
        return

    def stop() -> None:
        expired.set()
        database.interrupt()

    timer = threading.Timer(seconds, stop)
    timer.start()
    try:
        yield expired
    finally:
        timer.cancel()
        timer.join()


def _send(reader: pa.RecordBatchReader, request: Request, link: Link, expired: threading.Event) -> None:
    batches = _counted(reader, request.max_rows)
    held: list[pa.RecordBatch] = []
    size = 0
    most = SMALL_ANSWER if request.quick else HELD_BYTES
    for batch in batches:
        held.append(batch)
        size += batch.nbytes
        if expired.is_set() or (size > most and request.quick):
            raise _Slow
        if size > most:
            break
    whole = pa.RecordBatchReader.from_batches(reader.schema, itertools.chain(held, batches))
    frame: list[bytes] = []
    for chunk in ENCODERS[request.format](whole):
        frame.append(chunk)
        if sum(map(len, frame)) >= FRAME_BYTES:
            link.send(DATA, *frame)
            frame.clear()
    link.send(DATA, *frame)


def _counted(batches: Iterable[pa.RecordBatch], max_rows: int | None) -> Iterator[pa.RecordBatch]:
    rows = 0
    for batch in batches:
        rows += batch.num_rows
        if max_rows is not None and rows > max_rows:
            raise QueryError(f"the query yields more than {max_rows:,} rows: aggregate, or add LIMIT {max_rows}")
        yield batch
