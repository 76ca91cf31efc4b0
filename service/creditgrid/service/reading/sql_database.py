"""The DuckDB of one query, in its process: locked, with the tables that the query may read and nothing else."""

from __future__ import annotations

import os
import re
from typing import Any

import duckdb

from creditgrid.core.errors import QueryError
from creditgrid.service.reading.sql_files import TableFileSystem
from creditgrid.service.reading.sql_protocol import Files, Request
from creditgrid.service.reading.sql_scan import LedgerTable, Link

ACCEPTED = (
    "one SELECT (also WITH, VALUES, FROM, DESCRIBE, SHOW, SUMMARIZE, PIVOT, EXPLAIN) over results, curves, cells, "
    "stages, sweeps"
)
MAX_THREADS = 8
"""More would not fit into the memory of a query."""
MAX_SPILL = "16GB"
"""What a request that may spill writes to its directory at most."""


def open_database() -> duckdb.DuckDBPyConnection:
    """An empty database. ``admit`` finishes it; until then it is not locked."""
    database = duckdb.connect(":memory:")
    settings = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "threads": min(os.cpu_count() or 1, MAX_THREADS),
        "temp_directory": "",
        "max_temp_directory_size": "0B",
        "secret_directory": "",
        "home_directory": "/",  # error messages would show the service's own
        "TimeZone": "UTC",
        "allow_community_extensions": False,
        "allow_persistent_secrets": False,
        "python_enable_replacements": False,
    }
    for name, value in settings.items():
        database.execute(f"SET {name} = {value!r}")
    return database


def admit(database: duckdb.DuckDBPyConnection, request: Request, link: Link) -> None:
    """Give the database the tables of the request and its memory, and lock it for good."""
    database.execute(f"SET memory_limit = '{request.memory}B'")
    if request.spill is not None:
        database.execute(f"SET temp_directory = {quoted(request.spill)}")
        database.execute(f"SET max_temp_directory_size = '{MAX_SPILL}'")
    for name, schema in request.ledger.items():
        database.register(name, LedgerTable(link, name, schema))
    allowed = [name for table, files in request.files.items() for name in _add_files(database, table, files)]
    if allowed:
        database.execute(f"SET allowed_paths = [{', '.join(quoted(name) for name in allowed)}]")
        for table, files in request.files.items():
            _add_view(database, table, files)
    database.execute("SET enable_external_access = false")
    database.execute("SET lock_configuration = true")  # the last one: nothing can be changed after it


def _add_files(database: duckdb.DuckDBPyConnection, table: str, files: Files) -> list[str]:
    """Let the database open the files of a table; returns the names by which it may. A table without files is empty."""
    if not files.paths:
        database.register(table, files.columns.empty_table())
        return []
    system = TableFileSystem(table, files.root, files.paths)
    database.register_filesystem(system)
    return system.names


def _add_view(database: duckdb.DuckDBPyConnection, table: str, files: Files) -> None:
    """The view ``table`` over its files, which are all that the database may open."""
    if not files.paths:
        return
    names = ", ".join(quoted(f"{table}://{path}") for path in files.paths)
    options = "hive_partitioning = true, hive_types_autocast = false"
    if not files.uniform:  # otherwise DuckDB need not open all files to plan a query
        options += ", union_by_name = true"
    found = database.sql(f"SELECT * FROM read_parquet([{names}], {options})")  # noqa: S608 - quoted
    types = dict(zip(files.columns.names, database.from_arrow(files.columns.empty_table()).types, strict=True))
    columns = [
        identifier(name) if name in found.columns else f"NULL::{kind} AS {identifier(name)}"  # no file has it
        for name, kind in types.items()
    ]
    found.project(", ".join(columns)).create_view(table)


def quoted(text: str) -> str:
    """The text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """The name as an identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


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


def presentable(relation: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
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
        columns.append(f"#{number}{'::VARCHAR' if exotic else ''} AS {identifier(unique)}")
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
