"""The process that runs SQL for ``sandbox``, one query at a time, in a DuckDB that reaches only what it is given.

``python -m creditgrid.service.reading.sql_process`` reads pickled ``Request``s from stdin and answers each on stdout
with frames (one letter, the length as 8 bytes, the bytes): ``B`` a piece of an Arrow IPC stream, then one ``D`` (done)
or ``E`` (why not, in UTF-8). It is a process of its own because DuckDB alone cannot keep a query within bounds: a
single call such as ``levenshtein`` of two long strings is not interrupted, and memory of intermediate strings is not
counted. Here the kernel ends a query that runs too long (an alarm) and refuses memory beyond a limit.
"""

from __future__ import annotations

import importlib
import os
import pickle
import re
import resource
import signal
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
from humanize import naturalsize

from creditgrid.core.errors import QueryError

if TYPE_CHECKING:
    import pyarrow.dataset as pads

MAX_RESULT_BYTES = 256 * 2**20
"""A larger result is refused; the service holds it in memory while it answers."""
BATCH_ROWS = 8192
NO_MEMORY = 3
"""Exit status when a request alone is more than the memory holds."""
ACCEPTED = "one SELECT (also WITH, VALUES, FROM, DESCRIBE, SHOW, SUMMARIZE, PIVOT, EXPLAIN) over results, cells, sweeps"


@dataclass(frozen=True)
class Request:
    """One query and its bounds; ``tables`` are what it may read, by name."""

    sql: str
    tables: Mapping[str, pa.Table | pads.Dataset]
    timeout_s: float
    memory: int
    max_rows: int


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Answer requests until there are no more."""
    while True:
        try:
            request: Request = pickle.load(requests)  # noqa: S301 - written by the service, which started this process
        except EOFError:
            return
        except MemoryError:  # what is left of the request on the pipe cannot be made sense of
            sys.exit(NO_MEMORY)
        signal.setitimer(signal.ITIMER_REAL, request.timeout_s)
        try:
            answer(request, replies)
            last = (b"D", b"")
        except QueryError as error:
            last = (b"E", str(error).encode())
        signal.setitimer(signal.ITIMER_REAL, 0)
        _frame(replies, *last)


def answer(request: Request, replies: IO[bytes]) -> None:
    """Run the query and write its result.

    Raises:
        QueryError: when it is refused or fails.
    """
    try:
        with duckdb.connect(":memory:") as connection:
            for name, table in request.tables.items():
                connection.register(name, table)
            _lock(connection, request.memory)
            relation = _presentable(connection.sql(checked(request.sql)))
            _write(relation.to_arrow_reader(BATCH_ROWS), request.max_rows, replies)
    except (duckdb.OutOfMemoryException, MemoryError, pa.ArrowMemoryError) as error:
        raise out_of_memory(request.memory) from error
    except BrokenPipeError:
        raise  # nobody reads the answer any more
    except (duckdb.Error, pa.ArrowException, OSError, RuntimeError, ValueError) as error:
        if "Out of Memory" in str(error):  # so it is called when the last copy, to Arrow, fails
            raise out_of_memory(request.memory) from error
        raise QueryError(str(error)) from error


def out_of_memory(memory: int) -> QueryError:
    """The error of a query that needs more than ``memory`` bytes."""
    return QueryError(f"the query needs more than {naturalsize(memory, format='%g')} of memory: select less")


def checked(sql: str) -> str:
    """The statement, when it is one that may run.

    Raises:
        QueryError: naming what is accepted.
    """
    explain = re.match(r"\s*explain\s+(analyze\s+)?", sql, re.IGNORECASE)
    statements = duckdb.extract_statements(sql[explain.end() :] if explain else sql)
    if len(statements) != 1:
        raise QueryError(f"{len(statements)} statements; a query is {ACCEPTED}")
    kind = statements[0].type
    pivot = kind == duckdb.StatementType.MULTI and re.match(r"\s*(pivot|select|with|from)\b", sql, re.IGNORECASE)
    if kind != duckdb.StatementType.SELECT and not pivot:  # a PIVOT first collects its column names, then selects
        raise QueryError(f"{kind.name} is not possible here; a query is {ACCEPTED}")
    return sql


def _lock(connection: duckdb.DuckDBPyConnection, memory: int) -> None:
    settings = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "memory_limit": f"{memory}B",
        "threads": 2,
        "temp_directory": "",
        "max_temp_directory_size": "0B",
        "secret_directory": "",
        "home_directory": "/",  # else error messages tell where the service's own is
        "TimeZone": "UTC",
        "allow_community_extensions": False,
        "allow_persistent_secrets": False,
        "python_enable_replacements": False,
        "enable_external_access": False,
        "lock_configuration": True,  # the last one: nothing can be changed after it
    }
    for name, value in settings.items():
        connection.execute(f"SET {name} = {value!r}")


def _presentable(relation: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """The relation with distinct column names, and as text what Parquet, CSV or JSON have no type for."""
    taken: set[str] = set()
    columns = []
    kept = True
    for number, (name, kind) in enumerate(zip(relation.columns, relation.types, strict=True), start=1):
        unique, count = name, 0
        while unique in taken:
            count += 1
            unique = f"{name}_{count}"
        taken.add(unique)
        exotic = _exotic(kind)
        kept = kept and unique == name and not exotic
        quoted = unique.replace('"', '""')
        columns.append(f'#{number}{"::VARCHAR" if exotic else ""} AS "{quoted}"')
    return relation if kept else relation.project(", ".join(columns))


INTEGERS = {"tinyint", "smallint", "integer", "bigint", "utinyint", "usmallint", "uinteger", "ubigint"}
PLAIN = INTEGERS | {"boolean", "hugeint", "uhugeint", "float", "double", "decimal", "varchar", "blob"}
DATED = {"date", "time", "timestamp", "timestamp_s", "timestamp_ms", "timestamp_ns", "timestamp with time zone"}
NESTED = {"list", "array", "struct", "map"}


def _exotic(kind: Any, nested: bool = False) -> bool:
    if kind.id in NESTED:
        children = [child for _, child in kind.children if not isinstance(child, int)]  # an array has a size among them
        return not children or any(_exotic(child, nested=True) for child in children)
    return kind.id not in PLAIN and (nested or kind.id not in DATED)


def _write(reader: pa.RecordBatchReader, max_rows: int, replies: IO[bytes]) -> None:
    sink = _Frames(replies)
    rows = 0
    with pa.ipc.new_stream(sink, reader.schema) as writer:
        for batch in reader:
            rows += batch.num_rows
            if rows > max_rows:
                raise QueryError(f"the query yields more than {max_rows:,} rows: aggregate, or add LIMIT {max_rows}")
            writer.write_batch(batch)
            if sink.written > MAX_RESULT_BYTES:
                raise QueryError(
                    f"the result is larger than {MAX_RESULT_BYTES >> 20} MiB: select fewer columns, or add LIMIT"
                )


class _Frames:
    """A file for Arrow to write to, whose writes become frames."""

    closed = False

    def __init__(self, replies: IO[bytes]) -> None:
        self._replies = replies
        self.written = 0

    def write(self, data: Any) -> int:
        part = bytes(data)
        self.written += len(part)
        _frame(self._replies, b"B", part)
        return len(part)

    def flush(self) -> None:
        self._replies.flush()

    def close(self) -> None:
        pass


def _frame(replies: IO[bytes], tag: bytes, data: bytes) -> None:
    replies.write(tag + struct.pack(">Q", len(data)))
    replies.write(data)
    replies.flush()


def bound_memory(extra: int) -> None:
    """Let this process take ``extra`` bytes beyond what it has now; the kernel refuses more. Only Linux counts so."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmData:\s+(\d+) kB", status.read_text())
        assert found is not None
        limit = int(found[1]) * 1024 + extra
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


class WithoutPandas:
    """An import hook that does not find pandas: pyarrow.dataset imports it in vain, two of three seconds long."""

    def find_spec(self, name: str, *_: object) -> None:
        """See importlib.abc.MetaPathFinder."""
        if name == "pandas":
            raise ModuleNotFoundError("no pandas in this process", name=name)


def main() -> None:
    """Serve on stdin and stdout; the first argument is how many bytes may be used beyond the start."""
    sys.meta_path.insert(0, WithoutPandas())
    importlib.import_module("pyarrow.dataset")  # now, while nobody waits
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the service, which then closes our stdin
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the alarm ends this process, whatever it is doing
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints does not get between the frames
    bound_memory(int(sys.argv[1]))
    serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
