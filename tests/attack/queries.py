"""SQL that no person would send: writes, files, secrets, endless work, and text that is hardly SQL.

``{secret}`` stands for a file outside the data directory, ``{data}`` for the data directory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

REFUSED = (400,)
ANSWERED = (200, 400, 422)
"""422: it is empty, or longer than a query may be."""
MANY = 20_000


@dataclass(frozen=True, slots=True)
class Query:
    """SQL, and the statuses that are allowed. Whatever the status, an answer shows no secret."""

    sql: str
    statuses: tuple[int, ...] = ANSWERED


def queries() -> dict[str, Query]:
    """Queries by name."""
    found: dict[str, Query] = {}
    for group, some in {
        "not one SELECT": _statements(),
        "a file": _files(),
        "a secret": _secrets(),
        "work": _work(),
        "size": _sizes(),
        "text": _texts(),
    }.items():
        for sql, statuses in some:
            found[f"{group} {len(found) + 1}: {sql[:40]!a}"] = Query(sql, statuses)
    return found


Some = Iterator[tuple[str, tuple[int, ...]]]


def _statements() -> Some:
    for sql in (
        "INSERT INTO results SELECT * FROM results",
        "INSERT INTO cells VALUES (1)",
        "UPDATE results SET x = 0",
        "DELETE FROM results",
        "TRUNCATE results",
        "DROP TABLE results",
        "DROP VIEW cells",
        "ALTER TABLE results ADD COLUMN z INT",
        "CREATE TABLE t (x INT)",
        "CREATE TABLE t AS SELECT * FROM results",
        "CREATE TEMP TABLE t AS SELECT 1",
        "CREATE VIEW v AS SELECT 1",
        "CREATE OR REPLACE VIEW sweeps AS SELECT 1",
        "CREATE MACRO m() AS 1",
        "CREATE SEQUENCE s",
        "CREATE SCHEMA s",
        "CREATE TYPE t AS ENUM ('a')",
        "CREATE SECRET s (TYPE s3)",
        "CREATE INDEX i ON results (x)",
        "ATTACH '{data}/ledger.sqlite' AS l (TYPE sqlite)",
        "ATTACH ':memory:' AS other",
        "ATTACH 'https://example.org/x.db'",
        "DETACH memory",
        "USE memory",
        "COPY results TO '{secret}.csv'",
        "COPY (SELECT 1) TO '{data}/x.parquet' (FORMAT parquet)",
        "COPY (SELECT 1) TO '/dev/stdout'",
        "COPY results FROM '{secret}'",
        "EXPORT DATABASE '{data}/export'",
        "IMPORT DATABASE '{data}/export'",
        "INSTALL httpfs",
        "FORCE INSTALL sqlite",
        "LOAD httpfs",
        "LOAD '{data}/x.duckdb_extension'",
        "UPDATE EXTENSIONS",
        "SET memory_limit = '100GB'",
        "SET threads = 100",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "SET allow_unsigned_extensions = true",
        "SET GLOBAL temp_directory = '/tmp'",
        "SET VARIABLE v = 1",
        "RESET memory_limit",
        "RESET enable_external_access",
        "PRAGMA memory_limit = '100GB'",
        "PRAGMA enable_profiling",
        "PRAGMA database_list",
        "PRAGMA disable_checkpoint_on_shutdown",
        "CALL pragma_database_size()",
        "CALL force_checkpoint()",
        "CHECKPOINT",
        "FORCE CHECKPOINT",
        "VACUUM",
        "ANALYZE",
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "PREPARE p AS SELECT 1",
        "EXECUTE p",
        "DEALLOCATE p",
        "EXPLAIN ANALYZE DELETE FROM results",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP TABLE results",
        "SELECT 1;; DELETE FROM results;",
        "; SELECT 1; SET threads = 1",
        "/* SELECT 1 */ DELETE FROM results",
        "SELECT 1 -- \n; DELETE FROM results",
        "WITH d AS (DELETE FROM results RETURNING *) SELECT * FROM d",
        "COMMENT ON TABLE results IS 'x'",
        "MERGE INTO results USING cells ON false WHEN NOT MATCHED THEN INSERT VALUES (1)",
    ):
        yield sql, REFUSED


def _files() -> Some:
    paths = (
        "{secret}",
        "{data}/ledger.sqlite",
        "/proc/self/environ",
        "/proc/1/environ",
        "{data}/../secret.csv",
        "/dev/zero",
    )
    for function in ("read_csv", "read_text", "read_blob", "read_csv_auto", "sniff_csv"):
        for path in paths:
            yield f"SELECT * FROM {function}('{path}')", REFUSED
    for source in (
        "'{secret}'",
        "'/etc/passwd'",
        "'{data}/results/*/*.parquet'",
        "'https://example.org/x.csv'",
        "'http://127.0.0.1:1/x.parquet'",
        "'s3://bucket/x.parquet'",
        "'file://{secret}'",
        '"{secret}"',
        "read_parquet('{data}/results/**/*.parquet')",
        "read_parquet(['{secret}', '/etc/passwd'])",
        "parquet_metadata('{data}/results/x.parquet')",
        "parquet_schema('{data}/results/x.parquet')",
        "parquet_file_metadata('{data}/x')",
        "parquet_kv_metadata('{data}/x')",
        "read_json('{secret}')",
        "read_json_auto('/etc/passwd')",
        "read_ndjson('{secret}')",
        "read_json_objects('{secret}')",
        "read_csv('/dev/stdin')",
        "read_csv('/dev/fd/0')",
        "read_csv('/proc/self/fd/3')",
        "read_text('/proc/self/mem')",
        "read_text('/proc/self/cmdline')",
        "glob('/*')",
        "glob('{data}/**')",
        "glob('/proc/*/environ')",
        "sqlite_scan('{data}/ledger.sqlite', 'tokens')",
        "sqlite_attach('{data}/ledger.sqlite')",
        "sqlite_query('{data}/ledger.sqlite', 'SELECT 1')",
        "postgres_scan('host=localhost', 'public', 'tokens')",
        "postgres_query('x', 'SELECT 1')",
        "mysql_query('x', 'SELECT 1')",
        "delta_scan('{data}/results')",
        "iceberg_scan('{data}/results')",
        "st_read('{secret}')",
        "read_xlsx('{secret}')",
        "query('SELECT * FROM read_text(''{secret}'')')",
        "query_table('{secret}')",
        "read_duckdb('{data}/x.db')",
        "arrow_scan(1, 2, 3)",
        "pandas_scan(1)",
        "python_map_function(1)",
        "scan_arrow_ipc([1])",
    ):
        yield f"SELECT * FROM {source}", REFUSED
    yield "SELECT (SELECT content FROM read_text('{secret}'))", REFUSED
    yield "WITH t AS (SELECT * FROM '{secret}') SELECT * FROM t", REFUSED
    yield "SELECT * FROM results WHERE sweep IN (SELECT content FROM read_text('{secret}'))", REFUSED
    yield "SELECT * FROM results JOIN read_text('{secret}') ON true", REFUSED
    yield "FROM '{secret}'", REFUSED
    yield "SUMMARIZE '{secret}'", REFUSED
    yield "DESCRIBE '{secret}'", REFUSED


def _secrets() -> Some:
    for expression in (
        "getenv('PATH')",
        "getenv('CREDITGRID_TOKEN')",
        "getenv('ATTACK_SECRET')",
        "current_setting('secret_directory')",
        "current_setting('temp_directory')",
        "current_setting('home_directory')",
        "current_database()",
        "current_user",
        "version()",
        "pg_read_file('{secret}')",
        "load_extension('x')",
        "nextval('s')",
        "txid_current()",
        "getvariable('x')",
        "write_log('x')",
    ):
        yield f"SELECT {expression}", ANSWERED
    for source in (
        "duckdb_settings()",
        "duckdb_secrets()",
        "duckdb_extensions()",
        "duckdb_databases()",
        "duckdb_functions()",
        "duckdb_tables()",
        "duckdb_views()",
        "duckdb_memory()",
        "duckdb_temporary_files()",
        "duckdb_logs()",
        "pragma_database_list",
        "pragma_storage_info('results')",
        "pragma_user_agent()",
        "information_schema.tables",
        "pg_catalog.pg_settings",
        "sqlite_master",
        "tokens",
        "audit",
        "ledger.tokens",
        "ledger.main.tokens",
        "calls",
        "tasks",
        "alembic_version",
        "memory.main.results",
        "system.information_schema.columns",
        "test_all_types()",
        "repeat_row(1, num_rows=3)",
        "which_secret('s3://x', 's3')",
    ):
        yield f"SELECT * FROM {source}", ANSWERED


def _work() -> Some:
    for sql in (
        "SELECT count(*) FROM range(1000000000000) t(i) WHERE i % 7 = 3",
        "SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b",
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT max(n) FROM t",
        "WITH RECURSIVE t(s) AS (SELECT 'x' UNION ALL SELECT s || s FROM t) SELECT max(length(s)) FROM t",
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION SELECT (n * 7) % 1000003 FROM t) SELECT count(*) FROM t a, t b, t c",
        "SELECT sleep_ms(60000)",
        "SELECT repeat('x', 1000000000) || repeat('y', 1000000000)",
        "SELECT repeat('x', 2147483647)",
        "SELECT string_agg(repeat('x', 1000), '') FROM range(100000000)",
        "SELECT list(range) FROM range(10000000000)",
        "SELECT list_sort(list(hash(range))) FROM range(1000000000)",
        "SELECT range(100000000000)",
        "SELECT unnest(range(100000000000))",
        "SELECT generate_series(1, 100000000000)",
        "SELECT * FROM generate_series(TIMESTAMP '0001-01-01', TIMESTAMP '9999-01-01', INTERVAL 1 MICROSECOND)",
        "SELECT * FROM range(5000000)",
        "SELECT repeat('x', 100000) FROM range(500000)",
        "SELECT row_number() OVER (ORDER BY hash(range)) FROM range(1000000000)",
        "SELECT quantile_cont(range, 0.5) OVER (ORDER BY range) FROM range(100000000)",
        "SELECT * FROM range(100000000) ORDER BY hash(range) DESC LIMIT 1",
        "SELECT count(DISTINCT hash(range)) FROM range(10000000000)",
        "SELECT regexp_matches(repeat('a', 100000), '(a*)*b') FROM range(100000)",
        "SELECT repeat('a', 10000) SIMILAR TO '(a|aa|aaa)*b' FROM range(1000000)",
        "SELECT levenshtein(repeat('a', 20000), repeat('b', 20000)) FROM range(1000)",
        "SELECT damerau_levenshtein(repeat('a', 20000), repeat('b', 20000)) FROM range(1000)",
        "SELECT jaro_similarity(repeat('a', 100000), repeat('b', 100000)) FROM range(1000)",
        "SELECT format('{:>2000000000}', 'x')",
        "SELECT printf('%2000000000d', 1)",
        "SELECT lpad('x', 2000000000, 'y')",
        "SELECT bitstring('1', 2000000000)",
        "SELECT list_transform(range(10000000), x -> list_sum(range(x)))",
        "SELECT list_reduce(range(100000000), (a, b) -> a + b)",
        "SELECT factorial(100000000)",
        "SELECT 10::HUGEINT ^ 1000000",
        "SELECT array_agg(a ORDER BY hash(a.range)) FROM range(100000000) a",
        "SELECT max_by(range, hash(range), 100000000) FROM range(1000000000)",
        "SELECT histogram(range) FROM range(1000000000)",
        "SELECT mode(range), median(range) FROM range(1000000000)",
        "PIVOT (SELECT range AS a, range AS b FROM range(100000)) ON a USING sum(b)",
        "SELECT * FROM results a, results b, results c, results d, results e, results f, results g, results h",
        "SELECT x FROM results GROUP BY CUBE (x, y, sweep, cell, task, host, torch, version, device, attempt, seconds)",
        "SELECT md5(repeat('x', 100000000)) FROM range(10000)",
        "SELECT uuid() FROM range(100000000)",
        "SELECT random() FROM range(1000000000) USING SAMPLE 90%",
        "SELECT a FROM (SELECT range a FROM range(100000000)) WHERE a IN (SELECT hash(range) FROM range(100000000))",
        "SELECT * FROM results ASOF JOIN range(1000000000) r ON results.x >= r.range",
    ):
        yield sql, ANSWERED


def _sizes() -> Some:
    steps = [f", t{i + 1} AS (SELECT a FROM t{i} UNION ALL SELECT a FROM t{i})" for i in range(60)]
    doubled = "WITH t0 AS (SELECT 1 a)" + "".join(steps) + " SELECT count(*) FROM t60"
    for sql in (
        "SELECT " + "(" * MANY + "1" + ")" * MANY,
        "SELECT " + "-" * 999 + " 1",
        "SELECT " + "NOT " * MANY + "true",
        "SELECT " + "1 + " * MANY + "1",
        "SELECT " + "1, " * MANY + "1",
        "SELECT " + "CASE WHEN true THEN " * 2000 + "1" + " END" * 2000,
        "SELECT " + "[" * 5000 + "]" * 5000,
        "SELECT " + "{'a': " * 2000 + "1" + "}" * 2000,
        "SELECT " + "abs(" * 5000 + "1" + ")" * 5000,
        "SELECT * FROM " + "(SELECT * FROM " * 2000 + "results" + ")" * 2000,
        " UNION ALL ".join(["SELECT 1"] * 5000),
        "WITH " + ", ".join(f"t{i} AS (SELECT 1)" for i in range(3000)) + " SELECT 1",
        doubled,
        "SELECT * FROM results WHERE x IN (" + ", ".join(map(str, range(15_000))) + ")",
        "SELECT * FROM results WHERE " + " OR ".join(f"x = {i}" for i in range(5000)),
        "SELECT * FROM " + ", ".join(f"results r{i}" for i in range(200)) + " LIMIT 1",
        "SELECT * FROM results " + " ".join(f"JOIN results r{i} ON r{i}.x = results.x" for i in range(60)) + " LIMIT 1",
        "SELECT '" + "x" * 90_000 + "'",
        'SELECT 1 AS "' + "x" * 90_000 + '"',
        "SELECT 1 AS " + "x" * 90_000,
        "SELECT " + "9" * 90_000,
        "SELECT 1e" + "9" * 5000,
        "SELECT 0x" + "f" * 90_000,
        "SELECT x" + "." * 5000 + "y",
        "/*" * 45_000 + " SELECT 1",
        "--" * 45_000 + "\nSELECT 1",
        "SELECT 1" + " " * 90_000,
        "SELECT 1" + ";" * 90_000,
        "SELECT " + ", ".join(f"sum(x) OVER (ORDER BY x + {i})" for i in range(500)) + " FROM results",
        "SELECT '" + "''" * 45_000 + "'",
        "SELECT '" + "x" * 4_000_000 + "'",
    ):
        yield sql, ANSWERED


def _texts() -> Some:
    for sql in (
        "",
        " ",
        ";",
        "\0",
        "SELECT '\0'",
        "SELECT \0 1",
        "\ufeffSELECT 1",
        "SELECT\u00a01",
        "SELECT '\ud7ff\ue000\U0010ffff'",
        "SELECT \u202e1",
        "ＳＥＬＥＣＴ 1",
        "SELECT '",
        'SELECT "',
        "SELECT $$",
        "SELECT $a$ x $b$",
        "SELECT /*",
        "SELECT 1 /* /* */",
        "--",
        "SELECT $1",
        "SELECT ?",
        "SELECT :name",
        "SELECT %s",
        "SELECT {}",
        "SELECT * FROM {}",
        "SELECT 1 FROM",
        "SELECT * FROM nowhere",
        "SELECT nothing FROM results",
        "SELECT 1/0",
        "SELECT 'x'::INT",
        "SELECT error('asked for')",
        "SELECT CAST('9' AS DECIMAL(99, 99))",
        "SELECT 'NaN'::DOUBLE, 'Infinity'::DOUBLE",
        "SELECT INTERVAL '999999999999 years'",
        "SELECT DATE '999999-01-01'",
        "SELECT NULL",
        "SELECT [NULL], {'a': NULL}, MAP {1: NULL}",
        "SELECT MAP {1: 2}, 'a'::BLOB, '1'::BIT, uuid(), TIME '1:00', 1::HUGEINT",
        "SELECT 1 a, 2 a, 3 A",
        'SELECT 1 ""',
        "VALUES (1)",
        "TABLE results",
        "SHOW TABLES",
        "DESCRIBE results",
        "SUMMARIZE results",
        "EXPLAIN SELECT 1",
        "FROM results",
        "SELECT * FROM results LIMIT -1",
        "SELECT * FROM results LIMIT 1e100",
        "SELECT * FROM results OFFSET 99999999999999999999",
        "SELECT * EXCLUDE (x) REPLACE (1 AS y) FROM results",
        "SELECT COLUMNS('(.*)*') FROM results",
        "DROP TABLE results /* SELECT */",
    ):
        yield sql, ANSWERED
