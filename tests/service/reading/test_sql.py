"""SQL is read only and bounded."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import psutil
import pyarrow as pa
import pytest
import service_fakes
from service_fakes import Fakes
from sweeping import House

from creditgrid.core.errors import BusyError, QueryError
from creditgrid.core.experiment import Experiment
from creditgrid.core.experiments.registry import registry
from creditgrid.core.rows import common_schema, table
from creditgrid.core.spec.text import SpecText
from creditgrid.service.reading.sql import HEAVY, Query, Sandbox
from creditgrid.service.reading.sql_tables import Snapshot
from creditgrid.service.results.table import Results

CREDIT_RECOVERY = registry().experiments["credit_recovery"]
LINESEARCH = registry().experiments["linesearch"]

TIMEOUT_S = 2.5
METHODS = ("dfa", "vec")
ROWS = pa.table({"cell": ["a", "b", "c"], "experiment": ["linesearch"] * 3, "eta": [0.1, 0.2, 0.3]})


def make(fakes: Fakes, timeout_s: float = TIMEOUT_S) -> Sandbox:
    sql_tables: Any = fakes.sql_tables
    return Sandbox(sql_tables, timeout_s, memory=256 * 10**6, max_rows=1000)


async def answer(sandbox: Sandbox, sql: str, client: str | None = None) -> pa.Table:
    async with sandbox.answer(Query(sql, "arrow"), client) as pieces:
        data = b"".join([piece async for piece in pieces])
    return pa.ipc.open_stream(data).read_all()


def ask(sandbox: Sandbox, sql: str) -> pa.Table:
    return anyio.run(answer, sandbox, sql)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    fakes = Fakes(tmp_path_factory.mktemp("sandbox"))
    fakes.results.set(ROWS)
    fakes.control.submit(SpecText.of({"name": "one", "experiment": "linesearch"}))
    sandbox = make(fakes)
    sandbox.start()
    ask(sandbox, "SELECT 1")
    while len(children()) < HEAVY + 2:  # its processes are up before anything is timed
        time.sleep(0.1)
    yield sandbox
    sandbox.close()


def children(parent: int | None = None) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(parent).children():
        with suppress(psutil.Error):  # it has just ended
            if "sql_process" in " ".join(child.cmdline()):
                found.append(child)
    return found


# -- what is accepted --


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT * FROM results", 3),
        ("  select count(*) from results;  -- a comment", 1),
        ("FROM results", 3),
        ("TABLE results", 3),
        ("VALUES (1), (2)", 2),
        ("WITH q AS (SELECT eta FROM results) SELECT * FROM q WHERE eta > 0.15", 2),
        ("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5) SELECT * FROM n", 5),
        ("DESCRIBE results", 3),
        ("SHOW TABLES", 4),
        ("SUMMARIZE results", 3),
        ("EXPLAIN SELECT * FROM results", 1),
        ("EXPLAIN ANALYZE SELECT * FROM results", 1),
        ("PIVOT results ON cell USING sum(eta)", 1),
        ("SELECT * FROM cells", 3),
        ("SELECT * FROM Sweeps JOIN CELLS ON Sweeps.id = cells.sweep", 3),
        ("SELECT * FROM results, range(2)", 6),
        ("SELECT * FROM results WHERE cell = 'DROP TABLE results; --'", 0),
    ],
)
def test_reading(sandbox: Sandbox, sql: str, rows: int) -> None:
    assert ask(sandbox, sql).num_rows == rows


def test_columns_keep_their_types(sandbox: Sandbox) -> None:
    assert ask(sandbox, "SELECT * FROM results ORDER BY cell").equals(ROWS)


def test_columns_of_one_name_are_numbered(sandbox: Sandbox) -> None:
    table = ask(sandbox, 'SELECT a.cell, b.cell, 1 AS cell_1, 2 AS "q""x" FROM results a JOIN results b USING (eta)')
    assert len(set(table.column_names)) == 4
    assert table.column_names[0] == "cell"
    assert ask(sandbox, "SELECT 1 AS x, 2 AS x, 3 AS x").to_pylist() == [{"x": 1, "x_1": 2, "x_2": 3}]


def test_order_survives_conversion(sandbox: Sandbox) -> None:
    # The interval column is converted to text, which wraps the query once more.
    table = ask(sandbox, "SELECT i, to_days(1) AS d FROM range(1000) t(i) ORDER BY hash(i)")
    plain = ask(sandbox, "SELECT i FROM range(1000) t(i) ORDER BY hash(i)")
    assert table["i"].to_pylist() == plain["i"].to_pylist()
    assert table["d"][0].as_py() == "1 day"


def test_an_empty_table(tmp_path: Path) -> None:
    fakes = Fakes(tmp_path)
    sandbox = make(fakes)
    try:
        table = ask(sandbox, "SELECT * FROM results")
        assert (table.num_rows, table.schema) == (0, fakes.results.schema())
        assert ask(sandbox, "SELECT count(*) AS n FROM sweeps").to_pylist() == [{"n": 0}]
    finally:
        sandbox.close()


def test_a_delta_table(tmp_path: Path) -> None:
    results = Results(tmp_path / "table", "ledger")
    more = ROWS.append_column("layer", pa.array([1, 2, 3]))
    other = ROWS.set_column(1, "experiment", pa.array(["2026-01-01"] * 3))
    for batch, rows in enumerate([ROWS, more, other], start=1):  # columns are added, and partitions keep their type
        results.append(batch, [rows])
    fakes = Fakes(tmp_path)
    fakes.sql_tables.results = results.files  # type: ignore[method-assign]
    sandbox = make(fakes)
    try:
        sums = "count(*) AS n, count(layer) AS m, sum(eta) AS s"
        sql = f"SELECT experiment, {sums} FROM results WHERE eta > 0.15 GROUP BY 1"
        first, second = ask(sandbox, f"{sql} ORDER BY 1").to_pylist()
        assert (first["experiment"], first["n"], first["m"], first["s"]) == ("2026-01-01", 2, 0, pytest.approx(0.5))
        assert (second["experiment"], second["n"], second["m"], second["s"]) == ("linesearch", 4, 2, pytest.approx(1.0))
        names = ask(sandbox, "FROM results LIMIT 0").schema.names
        assert names[:4] == ["cell", "eta", "experiment", "layer"]
        assert set(names[4:]) == set(common_schema().names) - set(names[:4]), "what all rows have is there for SQL"
    finally:
        sandbox.close()


VEC_OF_VERSION_1 = "method = 'vec' AND coalesce((parent_versions->>'estimator')::INT, 1) < 2"
RHO_OF_VERSION_1 = "experiment IN ('exploitability', 'credit_recovery') AND coalesce(kind_version, 1) < 2"


def test_rows_from_before_versions_were_recorded_are_told_apart(tmp_path: Path) -> None:
    def rows(experiment: Experiment, prefix: str, **values: Any) -> pa.Table:
        measured = [{"cell": f"{prefix} {name}", "method": name, "experiment": experiment.name} for name in METHODS]
        return table(experiment, [{**row, **values} for row in measured])

    def names(sql: str) -> list[str]:
        return sorted(ask(sandbox, f"SELECT cell FROM results WHERE {sql}")["cell"].to_pylist())

    added, linesearch, recovery = ["kind_version", "parent_versions"], LINESEARCH, CREDIT_RECOVERY
    results = Results(tmp_path / "table", "ledger")
    results.append(1, [rows(linesearch, "old").drop_columns(added), rows(recovery, "old rho").drop_columns(added)])
    fakes = Fakes(tmp_path)
    fakes.sql_tables.results = results.files  # type: ignore[method-assign]
    sandbox = make(fakes)
    try:
        assert names("kind_version IS NULL AND parent_versions IS NULL") == sorted(
            f"old{which} {method}" for which in ("", " rho") for method in METHODS
        )
        over_old = {"parent_versions": '{"checkpoint":1,"estimator":1}'}
        new = {"parent_versions": '{"checkpoint":1,"estimator":2}'}
        results.append(
            2,
            [
                rows(linesearch, "over old", kind_version=1, **over_old),
                rows(linesearch, "new", kind_version=1, **new),
                rows(recovery, "new rho", kind_version=2, **new),
            ],
        )
        assert names(VEC_OF_VERSION_1) == ["old rho vec", "old vec", "over old vec"]
        assert names(RHO_OF_VERSION_1) == ["old rho dfa", "old rho vec"]
        assert names("(parent_versions->>'estimator')::INT = 2 AND method = 'vec'") == ["new rho vec", "new vec"]
        readme = (Path(__file__).resolve().parents[3] / "README.md").read_text()
        assert {VEC_OF_VERSION_1, RHO_OF_VERSION_1} <= {line.partition("WHERE ")[2] for line in readme.splitlines()}
    finally:
        sandbox.close()


def test_the_tables_of_a_ledger(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("creditgrid.service.reading.sql_tables.ROWS_AT_ONCE", 3)
    known: list[str] = []
    scan = Snapshot.scan

    def scanned(snapshot: Snapshot, table: str, columns: list[str], only: list[str] | None) -> Any:
        known.append(f"{table} {','.join(columns)} {only and len(only)}")
        return scan(snapshot, table, columns, only)

    monkeypatch.setattr(Snapshot, "scan", scanned)
    one = house.submit(name="one", axes={"x": list(range(10))})
    house.submit(name="two", axes={"x": [1, 2]})
    sandbox = Sandbox(house.sql_tables, TIMEOUT_S, 256 * 10**6, max_rows=1000)
    sql = "SELECT s.name, count(*) AS n, count(DISTINCT c.cell) AS keys FROM cells c JOIN sweeps s ON s.id = c.sweep"
    answer = [{"name": "one", "n": 10, "keys": 10}, {"name": "two", "n": 2, "keys": 2}]
    try:
        assert ask(sandbox, f"{sql} GROUP BY 1 ORDER BY 1").to_pylist() == answer
        # The ledger is read where the plan of the query reads it, and no more of it than needed.
        known.clear()
        ask(sandbox, "SELECT 1 -- cells, sweeps")
        ask(sandbox, "WITH cells AS (SELECT 1 AS x) SELECT * FROM cells")
        assert known == []
        assert ask(sandbox, "SELECT count(*) AS n FROM cells").to_pylist() == [{"n": 12}]
        assert known == ["cells sweep None"]
        known.clear()
        found = ask(
            sandbox, f"SELECT idx FROM cells WHERE sweep = '{one}' AND state = 'pending' AND idx < 3 ORDER BY 1"
        )
        assert found["idx"].to_pylist() == [0, 1, 2]
        assert known == ["sweeps id None", "cells sweep,idx,state 1"]
        assert ask(sandbox, f"SELECT * FROM cells WHERE sweep != '{one}' OR idx = 5").num_rows == 3
        with monkeypatch.context() as patch:
            patch.setattr("creditgrid.service.reading.sql_tables.utc", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                ask(sandbox, "SELECT created_at FROM sweeps JOIN cells ON id = sweep")
        assert ask(sandbox, f"{sql} GROUP BY 1 ORDER BY 1").to_pylist() == answer
    finally:
        sandbox.close()
        house.drain()


# -- what is refused --


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1; SELECT 2",
        "",
        " ; ",
        "-- nothing",
        "INSERT INTO results VALUES ('x', 'y', 1)",
        "UPDATE results SET eta = 0",
        "DELETE FROM results",
        "DROP VIEW results",
        "CREATE TABLE t (i INT)",
        "CREATE MACRO m() AS 1",
        "COPY results TO '/tmp/creditgrid-stolen.csv'",
        "COPY (SELECT 1) TO '/tmp/creditgrid-stolen.csv'",
        "ATTACH '/tmp/creditgrid-stolen.db'",
        "EXPORT DATABASE '/tmp/creditgrid-stolen'",
        "IMPORT DATABASE '/tmp'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET threads = 8",
        "SET enable_external_access = true",
        "RESET lock_configuration",
        "PRAGMA database_list",
        "CALL enable_logging()",
        "PREPARE p AS SELECT 1",
        "BEGIN",
        "VACUUM",
        "CHECKPOINT",
        "USE memory",
        "EXPLAIN DELETE FROM results",
        "EXPLAIN ANALYZE COPY results TO '/tmp/creditgrid-stolen.csv'",
        "/* */ EXPLAIN COPY results TO '/tmp/creditgrid-stolen.csv'",
    ],
)
def test_writing_is_refused(sandbox: Sandbox, sql: str) -> None:
    with pytest.raises(QueryError) as caught:
        ask(sandbox, sql)
    assert "one SELECT" in str(caught.value)
    assert not list(Path("/tmp").glob("creditgrid-stolen*"))


@pytest.mark.parametrize(
    "source",
    [
        "read_csv('{}')",
        "read_csv_auto('{}')",
        "read_parquet('{}')",
        "parquet_scan('{}')",
        "parquet_metadata('{}')",
        "read_json('{}')",
        "read_text('{}')",
        "read_blob('{}')",
        "read_duckdb('{}')",
        "sniff_csv('{}')",
        "glob('{}*')",
        "'{}'",
        '"{}"',
        "query('SELECT * FROM read_text(''{}'')')",
        "query_table('{}')",
        "json_execute_serialized_sql(json_serialize_sql('SELECT * FROM read_text(''{}'')'))",
        "'https://example.com/x.parquet'",
        "read_csv('https://example.com/x.csv')",
        "read_parquet('s3://bucket/x.parquet')",
        "enable_logging(storage='file', storage_config={{'path': '/tmp/creditgrid-stolen'}})",
        "enable_profiling(save_location='/tmp/creditgrid-stolen')",
    ],
)
def test_files_and_network_are_out_of_reach(sandbox: Sandbox, tmp_path: Path, source: str) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("name,value\nkey,open-sesame\n")
    with pytest.raises(QueryError) as caught:
        ask(sandbox, f"SELECT * FROM {source.format(secret)}")
    assert "open-sesame" not in str(caught.value)
    assert not list(Path("/tmp").glob("creditgrid-stolen*"))


def test_python_objects_are_out_of_reach(sandbox: Sandbox) -> None:
    for name in ("request", "connection", "relation", "self", "tables", "ROWS", "fakes"):
        with pytest.raises(QueryError, match="does not exist"):
            ask(sandbox, f"SELECT * FROM {name}")


def test_secrets_are_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDITGRID_TOKEN", "correct-horse-battery")
    fakes = Fakes(tmp_path)
    fakes.results.set(ROWS)
    sandbox = make(fakes)
    try:
        for sql in ("SELECT getenv('CREDITGRID_TOKEN')", "SELECT * FROM read_text('/proc/self/environ')"):
            with pytest.raises(QueryError):
                ask(sandbox, sql)
        for sql in ("FROM duckdb_settings()", "FROM duckdb_views()", "FROM duckdb_databases()", "EXPLAIN FROM results"):
            shown = str(ask(sandbox, sql).to_pylist())
            assert str(tmp_path) not in shown
            assert str(Path.home()) not in shown
        (child,) = children()[-1:]
        assert not [name for name in child.environ() if name.startswith("CREDITGRID_")]
    finally:
        sandbox.close()


def test_errors_point_into_the_query(sandbox: Sandbox) -> None:
    with pytest.raises(QueryError, match="etta"):
        ask(sandbox, "SELECT etta FROM results")
    with pytest.raises(QueryError, match="syntax error"):
        ask(sandbox, "SELECT FROM WHERE")
    with pytest.raises(QueryError, match="Conversion"):
        ask(sandbox, "SELECT cell::INT FROM results")


# -- what is bounded --


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM range(1000000000000) t(i) WHERE i % 7 = 3",
        "SELECT max(a.i * b.i % 7) FROM range(1000000) a(i), range(1000000) b(i)",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
        "SELECT sleep_ms(60000)",
        # One call of a function, which DuckDB itself would not interrupt:
        "SELECT levenshtein(repeat('a', 300000), repeat('b', 300000))",
    ],
)
def test_endless_queries_are_stopped(sandbox: Sandbox, sql: str) -> None:
    started = time.monotonic()
    with pytest.raises(QueryError, match=f"longer than {TIMEOUT_S:g} s"):
        ask(sandbox, sql)
    assert TIMEOUT_S - 0.5 < time.monotonic() - started < TIMEOUT_S + 2
    assert ask(sandbox, "SELECT 42 AS x").to_pylist() == [{"x": 42}]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT repeat('x', 1000000000) || repeat('y', 1000000000) || repeat('z', 1000000000)",
        "SELECT list(i) FROM range(1000000000) t(i)",
        "SELECT range(1000000000)",
        "SELECT string_agg(repeat('x', 1000), '') FROM range(10000000)",
        "SELECT hash(i) AS h, count(*) FROM range(1000000000) t(i) GROUP BY h LIMIT 1",
        "SELECT lpad('x', 2000000000, 'y')",
    ],
)
def test_memory_is_bounded(sandbox: Sandbox, sql: str) -> None:
    largest = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal largest
        while not done.wait(0.02):
            for child in children():
                with suppress(psutil.Error):
                    largest = max(largest, child.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with pytest.raises(QueryError, match=r"256 MB of memory|longer than"):
            ask(sandbox, sql)
    finally:
        done.set()
        watcher.join()
    assert largest < 1.6e9
    assert ask(sandbox, "SELECT 42 AS x").to_pylist() == [{"x": 42}]


def test_rows_are_bounded(sandbox: Sandbox) -> None:
    assert ask(sandbox, "SELECT * FROM range(1000)").num_rows == 1000
    for sql in (
        "SELECT * FROM range(1001)",
        "SELECT * FROM range(100000000000)",
        "SELECT * FROM results, range(10000)",
    ):
        with pytest.raises(QueryError, match=r"1,000 rows.*LIMIT"):
            ask(sandbox, sql)


ENDLESS = "SELECT count(*) FROM range(1000000000000) t(i) WHERE i % 7 = 3"


async def outcome(sandbox: Sandbox, sql: str, outcomes: list[str]) -> None:
    try:
        await answer(sandbox, sql)
        outcomes.append("answered")
    except (BusyError, QueryError) as error:
        outcomes.append(type(error).__name__)


def test_short_queries_overtake_long_ones(sandbox: Sandbox) -> None:
    outcomes: list[str] = []

    async def many() -> float:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(outcome, sandbox, ENDLESS, outcomes)
            await anyio.sleep(0.3)
            assert sandbox.queue.lengths()["running"] <= HEAVY + 1
            started = time.monotonic()
            assert (await answer(sandbox, "SELECT 42 AS x")).to_pylist() == [{"x": 42}]
            seconds = time.monotonic() - started
            assert sandbox.queue.lengths()["waiting"] > 10
        return seconds

    assert anyio.run(many) < TIMEOUT_S
    assert outcomes.count("QueryError") >= HEAVY  # stopped at their time limit
    assert outcomes.count("BusyError") > 10  # those behind them gave up
    assert sandbox.queue.lengths() == {"running": 0, "waiting": 0}
    assert len(children()) <= HEAVY + 2


@pytest.mark.parametrize("sql", [ENDLESS, "SELECT sleep_ms(60000)"])
def test_a_query_that_is_not_short_is_moved(sandbox: Sandbox, sql: str) -> None:
    async def three() -> list[str]:
        outcomes: list[str] = []
        async with anyio.create_task_group() as group:
            for _ in range(HEAVY):
                group.start_soon(outcome, sandbox, sql, outcomes)
            await anyio.sleep(0.1)
            wide = "SELECT repeat('x', 200000) || i AS x FROM range(100) t(i)"  # soon complete, but large
            group.start_soon(outcome, sandbox, wide, outcomes)
        return outcomes

    assert sorted(anyio.run(three)) in (["BusyError", *["QueryError"] * HEAVY], ["QueryError"] * HEAVY + ["answered"])


def test_a_cancelled_query_frees_its_slot(sandbox: Sandbox) -> None:
    async def cancelled() -> None:
        async with anyio.create_task_group() as group:
            for sql in [ENDLESS, "SELECT sleep_ms(60000)"] * 5:
                group.start_soon(answer, sandbox, sql)
            await anyio.sleep(0.2)
            assert sandbox.queue.lengths()["waiting"] > 5
            group.cancel_scope.cancel()
        assert sandbox.queue.lengths() == {"running": 0, "waiting": 0}

    started = time.monotonic()
    anyio.run(cancelled)
    assert time.monotonic() - started < TIMEOUT_S
    assert ask(sandbox, "SELECT 42 AS x").to_pylist() == [{"x": 42}]


@pytest.fixture
def large(sandbox: Sandbox) -> Iterator[Sandbox]:
    """With room for large answers."""
    made = Sandbox(sandbox._tables, 12, memory=256 * 10**6, max_rows=400_000)
    yield made
    made.close()


def test_a_reader_that_leaves_ends_its_query(large: Sandbox) -> None:
    async def leave() -> int:
        async with large.answer(Query("SELECT repeat('x', 1000) || i AS x FROM range(500000) t(i)", "csv")) as pieces:
            async for piece in pieces:
                return len(piece)
        raise AssertionError("no answer")

    assert anyio.run(leave) > 0
    assert large.queue.lengths() == {"running": 0, "waiting": 0}


def test_a_slow_reader_holds_neither_memory_nor_a_slot(large: Sandbox) -> None:
    received = 0

    async def read_slowly() -> None:
        nonlocal received
        async with large.answer(Query("SELECT repeat('x', 1000) || i AS x FROM range(500000) t(i)", "csv")) as pieces:
            async for piece in pieces:
                received += len(piece)
                if received > 3e7:
                    await anyio.sleep(60)

    before = psutil.Process().memory_info().rss
    with pytest.raises(QueryError, match="longer than 12 s"):
        anyio.run(read_slowly)
    assert received > 3e7
    assert large.queue.lengths() == {"running": 0, "waiting": 0}
    assert psutil.Process().memory_info().rss - before < 200e6  # of 500 MB


def test_an_error_after_the_first_rows(large: Sandbox) -> None:
    received = 0

    async def read() -> None:
        nonlocal received
        async with large.answer(Query("SELECT repeat('x', 1000) || i AS x FROM range(500000) t(i)", "csv")) as pieces:
            async for piece in pieces:
                received += len(piece)

    with pytest.raises(QueryError, match="400,000 rows"):
        anyio.run(read)
    assert received > 1e7


def test_a_process_that_died_is_replaced(sandbox: Sandbox) -> None:
    ask(sandbox, "SELECT 1")
    for child in children():
        child.kill()
        child.wait()
    assert ask(sandbox, "SELECT 1").num_rows == 1


def test_closing_ends_processes_and_queries(tmp_path: Path) -> None:
    fakes = Fakes(tmp_path)
    sandbox = make(fakes, 30)
    ask(sandbox, "SELECT 1")
    before = set(children())
    said: list[str] = []

    def sleep() -> None:
        try:
            ask(sandbox, "SELECT sleep_ms(60000)")
        except QueryError as error:
            said.append(str(error))

    thread = threading.Thread(target=sleep)
    thread.start()
    time.sleep(0.5)
    started = time.monotonic()
    sandbox.close()
    thread.join()
    assert time.monotonic() - started < 20  # of the 60 s that it would sleep
    assert said == ["the service is stopping"]
    assert len(set(children()) & before) < len(before)
    with pytest.raises(QueryError, match="stopping"):
        ask(sandbox, "SELECT 1")


SERVICE = """
import sys, time
import anyio
from pathlib import Path
from service_fakes import Fakes
from sweeping import House
from creditgrid.service.reading.sql import Query, Sandbox

async def ask():
    async with sandbox.answer(Query("SELECT 1", "json")) as pieces:
        async for _ in pieces:
            pass

sandbox = Sandbox(Fakes(Path(sys.argv[1])).sql_tables, 10, memory=256 * 10**6, max_rows=1000)
anyio.run(ask)
print("answered", flush=True)
time.sleep(60)
"""


def test_a_query_process_ends_with_its_service(tmp_path: Path) -> None:
    path = {**os.environ, "PYTHONPATH": str(Path(service_fakes.__file__).parent)}
    command = [sys.executable, "-c", SERVICE, str(tmp_path)]
    with subprocess.Popen(command, env=path, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        assert service.stdout.readline() == "answered\n"
        (child,) = children(service.pid)
        service.kill()
    deadline = time.monotonic() + 30
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
