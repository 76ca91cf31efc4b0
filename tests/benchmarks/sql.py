"""SQL over a large results table beside plain DuckDB on the same files, and how fast rows are streamed.

``python -m tests.benchmarks.sql [ROWS]`` runs it alone. It stops before HTTP: the answer is taken where a route takes
it.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import anyio
import duckdb
import psutil
from tests.sweeping import House

from creditgrid.core.experiments.registry import registry
from creditgrid.core.rows import schema
from creditgrid.service.ledger import tables
from creditgrid.service.ledger.engine import insert_many
from creditgrid.service.reading.rows import Rows
from creditgrid.service.reading.sql import Query, Sandbox

PLUGIN = Path(__file__).parents[1] / "plugin"
ROWS = 10_000_000
FILES = 20
STREAMED = 1_000_000
ROUNDS = 5
WANTED_RATIO, WANTED_RATE = 1.2, 100.0
MEMORY = 2 * 10**9
QUERIES = {
    "count": "SELECT count(*) FROM results",
    "group": "SELECT host, y, avg(twice), min(seconds) FROM results GROUP BY ALL ORDER BY ALL",
    "filter": "SELECT count(*), avg(twice) FROM results WHERE y = 3 AND seconds < 0.1",
    "aggregate": "SELECT sum(twice), sum(x), max(seconds), avg(y) FROM results",
    "top": "SELECT cell, twice FROM results ORDER BY seconds LIMIT 10",
}


class Beside(NamedTuple):
    """Milliseconds of a query, medians of rounds by turns."""

    name: str
    ours: float
    plain: float

    @property
    def ratio(self) -> float:
        return self.ours / self.plain


class Stream(NamedTuple):
    """Rows as Arrow: seconds until the first, MB/s from then on, and how much this process grew meanwhile, in MB."""

    name: str
    first: float
    rate: float
    grown: float


def measure(rows: int = ROWS) -> tuple[list[Beside], list[Stream]]:
    """Make the table in a temporary folder and measure."""
    sys.path.insert(0, str(PLUGIN))  # the no-op experiment, whose rows they are
    with tempfile.TemporaryDirectory() as folder:
        house = House(Path(folder))
        try:
            return anyio.run(_measure, house, _fill(house, rows))
        finally:
            house.close()


def _fill(house: House, rows: int) -> str:
    """Rows in large files, of which the first are those of one sweep; returns the sweep."""
    columns = schema(registry().experiments["noop"])
    some = {
        "sweep": "'s0'",
        "cell": "sha256(i::VARCHAR)",
        "experiment": "'noop'",
        "x": "i",
        "y": "(i % 17)::DOUBLE",
        "twice": "2.0 * i",
        "diverged": "i % 2 = 0",
        "task": "sha256(i::VARCHAR)",
        "attempt": "1::BIGINT",
        "seconds": "random()",
        "host": "'host-' || i % 4",
    }
    listed = ", ".join(f"{some.get(name, 'NULL')} AS {name}" for name in columns.names)
    piece = max(1, rows // FILES)
    with duckdb.connect() as maker:
        for number, first in enumerate(range(0, rows, piece), start=1):
            made = maker.sql(f"SELECT {listed} FROM range({first}, {min(first + piece, rows)}) t(i)").to_arrow_table()
            house.results.append(number, [made.cast(columns)])
        keys = maker.sql(
            f"SELECT i AS idx, sha256(i::VARCHAR) AS key FROM range({min(rows, STREAMED)}) t(i)"
        ).fetchall()
    sweep = house.submit(axes={"x": [-1]})
    with house.ledger.write() as connection:
        connection.execute(tables.cells.delete())
        insert_many(
            connection,
            tables.cells,
            [{"sweep": sweep, "idx": idx, "key": key, "call": None, "state": "succeeded"} for idx, key in keys],
        )
    return sweep


async def _measure(house: House, sweep: str) -> tuple[list[Beside], list[Stream]]:
    sandbox = Sandbox(house.sql_tables, 300, MEMORY, 2 * STREAMED)
    sandbox.start()
    try:
        await _read(sandbox, Query("SELECT 1", "arrow"))
        await anyio.sleep(5)  # its processes start one by one
        beside = [await _beside(sandbox, house, name, sql) for name, sql in QUERIES.items()]
        rows = Rows(house.sweeps, house.sql_tables, house.results, house.services.codes).query(sweep, "arrow")
        asked = {f"SQL, {STREAMED:,} rows": Query(f"FROM results LIMIT {STREAMED}", "arrow"), "rows of a sweep": rows}
        return beside, [await _stream(sandbox, name, query) for name, query in asked.items()]
    finally:
        sandbox.close()


async def _beside(sandbox: Sandbox, house: House, name: str, sql: str) -> Beside:
    ours, plain = [], []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        with duckdb.connect() as database:
            files = f"read_parquet('{house.results.path}/*/*.parquet', hive_partitioning = true)"
            database.execute(f"CREATE VIEW results AS FROM {files}")
            database.sql(sql).fetchall()
        plain.append(time.perf_counter() - started)
        started = time.perf_counter()
        await _read(sandbox, Query(sql, "arrow"))
        ours.append(time.perf_counter() - started)
    return Beside(name, 1000 * statistics.median(ours), 1000 * statistics.median(plain))


async def _read(sandbox: Sandbox, query: Query) -> tuple[int, float, float]:
    """Bytes of the answer, the seconds until its first bytes, and the seconds from there to its last."""
    size, asked, first = 0, time.perf_counter(), 0.0
    async with sandbox.answer(query) as pieces:
        async for piece in pieces:
            first = first or time.perf_counter()
            size += len(piece)
    return size, first - asked, time.perf_counter() - first


async def _stream(sandbox: Sandbox, name: str, query: Query) -> Stream:
    process = psutil.Process()
    before = process.memory_info().rss
    size, first, seconds = await _read(sandbox, query)
    return Stream(name, first, size / 1e6 / seconds, (process.memory_info().rss - before) / 1e6)


def main() -> None:
    beside, streams = measure(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS)
    for item in beside:
        print(f"{item.name:>10}: ours {item.ours:,.0f} ms, plain DuckDB {item.plain:,.0f} ms, ratio {item.ratio:.2f}")
    for stream in streams:
        print(
            f"{stream.name}: first bytes after {stream.first:.2f} s, then {stream.rate:,.0f} MB/s of Arrow; "
            f"this process grew by {stream.grown:,.0f} MB"
        )


if __name__ == "__main__":
    main()
