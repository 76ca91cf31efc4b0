"""The process that runs SQL for ``sql.Sandbox``, one query at a time. Its DuckDB reaches only what it is given.

It is a process of its own because DuckDB alone cannot bound a query: it does not interrupt a single call such as
``levenshtein`` of two long strings, and does not count the memory of intermediate strings. Here the kernel ends a
query that runs too long (an alarm) and refuses memory beyond a limit.

``python -m creditgrid.service.reading.sql_process BYTES FD`` may use so many bytes beyond its start, and talks to the
service over the ``multiprocessing.Connection`` with this file descriptor. For each query the service sends a
``Request`` and the tables that ``Request.streamed`` names; the answer is a table and the text of an error, which is
empty if there is none. A table is the Arrow IPC message of its schema, one of each batch, and an empty message. Only
the request is pickled, so the service unpickles nothing that this process sends.
"""

from __future__ import annotations

import importlib
import re
import resource
import signal
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
from humanize import naturalsize

from creditgrid.core.errors import QueryError

if TYPE_CHECKING:
    import pyarrow.dataset as pads

MAX_RESULT_BYTES = 256 * 2**20
"""A larger result is refused: the service holds it in memory while it answers."""
BATCH_ROWS = 8192
NO_MEMORY = 3
"""Exit status when the tables of a request need more than the memory."""
ACCEPTED = "one SELECT (also WITH, VALUES, FROM, DESCRIBE, SHOW, SUMMARIZE, PIVOT, EXPLAIN) over results, cells, sweeps"


@dataclass(frozen=True)
class Request:
    """One query and its bounds. It may read ``files`` and the tables that follow the request, by their names."""

    sql: str
    files: dict[str, pads.Dataset]
    streamed: list[str]
    timeout_s: float
    memory: int
    max_rows: int


def send_table(connection: Connection, reader: pa.RecordBatchReader) -> None:
    """Send a table, a batch at a time."""
    connection.send_bytes(reader.schema.serialize())
    for batch in reader:
        connection.send_bytes(batch.serialize())
    connection.send_bytes(b"")


def receive_table(connection: Connection) -> pa.Table:
    """The table that the other side sends."""
    messages = [pa.py_buffer(data) for data in iter(connection.recv_bytes, b"")]
    if not messages:
        return pa.table({})
    schema = pa.ipc.read_schema(messages[0])
    return pa.Table.from_batches([pa.ipc.read_record_batch(message, schema) for message in messages[1:]], schema)


def serve(connection: Connection) -> None:
    """Answer requests until the service closes the connection."""
    while True:
        try:
            request: Request = connection.recv()
            tables = {name: receive_table(connection) for name in request.streamed}
        except EOFError:
            return
        except MemoryError:
            sys.exit(NO_MEMORY)
        signal.setitimer(signal.ITIMER_REAL, request.timeout_s)
        error = ""
        try:
            answer(request, tables, connection)
        except QueryError as problem:
            error = str(problem)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send_bytes(b"")
        connection.send_bytes(error.encode())


def answer(request: Request, tables: dict[str, pa.Table], connection: Connection) -> None:
    """Run the query and send its schema and batches.

    Raises:
        QueryError: it is refused or fails.
    """
    try:
        with duckdb.connect(":memory:") as database:
            for name, table in {**request.files, **tables}.items():
                database.register(name, table)
            _lock(database, request.memory)
            relation = _presentable(database.sql(checked(request.sql)))
            _send(relation.to_arrow_reader(BATCH_ROWS), request.max_rows, connection)
    except (duckdb.OutOfMemoryException, MemoryError, pa.ArrowMemoryError) as error:
        raise out_of_memory(request.memory) from error
    except ConnectionError:  # the service has closed the connection
        raise
    except (duckdb.Error, pa.ArrowException, OSError, RuntimeError, ValueError) as error:
        if "Out of Memory" in str(error):  # what the last copy, to Arrow, raises
            raise out_of_memory(request.memory) from error
        raise QueryError(str(error)) from error


def out_of_memory(memory: int) -> QueryError:
    """The error of a query that needs more than ``memory`` bytes."""
    return QueryError(f"the query needs more than {naturalsize(memory, format='%g')} of memory: select less")


def checked(sql: str) -> str:
    """The statement, if it may run.

    Raises:
        QueryError: it may not; the message says what may.
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
        "home_directory": "/",  # error messages would show the service's own
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


def _send(reader: pa.RecordBatchReader, max_rows: int, connection: Connection) -> None:
    connection.send_bytes(reader.schema.serialize())
    rows = size = 0
    for batch in reader:
        rows += batch.num_rows
        if rows > max_rows:
            raise QueryError(f"the query yields more than {max_rows:,} rows: aggregate, or add LIMIT {max_rows}")
        message = batch.serialize()
        size += message.size
        if size > MAX_RESULT_BYTES:
            raise QueryError(
                f"the result is larger than {MAX_RESULT_BYTES >> 20} MiB: select fewer columns, or add LIMIT"
            )
        connection.send_bytes(message)


def bound_memory(extra: int) -> None:
    """Let this process take ``extra`` bytes beyond what it has now; the kernel refuses more. On Linux only."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmData:\s+(\d+) kB", status.read_text())
        assert found is not None
        limit = int(found[1]) * 1024 + extra
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


class WithoutPandas:
    """An import hook that finds no pandas: pyarrow.dataset imports it without need, which takes two seconds."""

    def find_spec(self, name: str, *_: object) -> None:
        """See importlib.abc.MetaPathFinder."""
        if name == "pandas":
            raise ModuleNotFoundError("no pandas in this process", name=name)


def main() -> None:
    """Serve the connection that the arguments name, within the memory that they allow."""
    sys.meta_path.insert(0, WithoutPandas())
    importlib.import_module("pyarrow.dataset")  # now, while nobody waits
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the service, which then ends this process
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the alarm ends this process, whatever it is doing
    allowed, descriptor = (int(argument) for argument in sys.argv[1:])
    bound_memory(allowed)
    with Connection(descriptor) as connection:
        serve(connection)


if __name__ == "__main__":
    main()
