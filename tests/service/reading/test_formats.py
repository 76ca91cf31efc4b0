"""Results in four formats, each read back by another reader than the one that wrote it."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditgrid.service.reading.formats import ENCODERS

STAMP = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
TABLE = pa.table(
    {
        "cell": pa.array(["a", 'quote " comma , line \n ü', None]),
        "eta": pa.array([1e-5, None, 0.1 + 0.2]),
        "seed": pa.array([2**62, None, -1], pa.int64()),
        "diverged": pa.array([True, False, None]),
        "started_at": pa.array([STAMP, None, STAMP], pa.timestamp("us", "UTC")),
    }
)


def encode(table: pa.Table, name: str, rows: int = 2) -> bytes:
    return b"".join(ENCODERS[name](table.to_reader(rows)))


def test_arrow() -> None:
    assert pa.ipc.open_stream(encode(TABLE, "arrow")).read_all() == TABLE


def test_parquet() -> None:
    data = encode(TABLE, "parquet")
    assert pq.read_table(io.BytesIO(data)) == TABLE
    assert pq.ParquetFile(io.BytesIO(data)).num_row_groups == 2  # batch by batch, not all at once


def test_csv_by_the_standard_library() -> None:
    rows = list(csv.DictReader(io.StringIO(encode(TABLE, "csv").decode(), newline="")))
    assert [row["cell"] for row in rows] == ["a", 'quote " comma , line \n ü', ""]
    assert [row["eta"] and float(row["eta"]) for row in rows] == [1e-5, "", 0.1 + 0.2]
    assert [row["seed"] for row in rows] == [str(2**62), "", "-1"]
    assert [row["diverged"] for row in rows] == ["true", "false", ""]
    assert datetime.fromisoformat(rows[0]["started_at"]) == STAMP


def test_json() -> None:
    rows = json.loads(encode(TABLE, "json"))
    assert [list(row) for row in rows] == [TABLE.column_names] * 3
    assert rows[0] == {
        "cell": "a",
        "eta": 1e-5,
        "seed": 2**62,
        "diverged": True,
        "started_at": "2026-01-02T03:04:05.678901Z",
    }
    assert rows[1] == {
        "cell": 'quote " comma , line \n ü',
        "eta": None,
        "seed": None,
        "diverged": False,
        "started_at": None,
    }
    assert datetime.fromisoformat(rows[2]["started_at"]) == STAMP


@pytest.mark.parametrize("name", ENCODERS)
def test_no_rows(name: str) -> None:
    data = encode(TABLE.slice(0, 0), name)
    empty: dict[str, Any] = {
        "arrow": lambda: pa.ipc.open_stream(data).read_all() == TABLE.slice(0, 0),
        "parquet": lambda: pq.read_table(io.BytesIO(data)) == TABLE.slice(0, 0),
        "csv": lambda: next(csv.reader([data.decode()])) == TABLE.column_names,
        "json": lambda: json.loads(data) == [],
    }
    assert empty[name]()


def test_batches_without_rows_in_between() -> None:
    batch = pa.record_batch({"x": [1]})
    reader = pa.RecordBatchReader.from_batches(batch.schema, [batch.slice(0, 0), batch, batch.slice(0, 0), batch])
    assert json.loads(b"".join(ENCODERS["json"](reader))) == [{"x": 1}, {"x": 1}]


@pytest.mark.parametrize("name", ENCODERS)
def test_bytes_come_while_batches_are_read(name: str) -> None:
    read = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal read
        for read in range(1, 6):
            yield pa.record_batch({"x": [float(read)] * 100})

    pieces = ENCODERS[name](pa.RecordBatchReader.from_batches(pa.schema([("x", pa.float64())]), batches()))
    assert next(pieces)
    assert read < 3


numbers = st.one_of(st.none(), st.floats())


@given(st.lists(st.tuples(numbers, st.one_of(st.none(), st.text()), st.integers(-(2**63), 2**63 - 1)), max_size=20))
def test_json_says_what_was_there(rows: list[tuple[float | None, str | None, int]]) -> None:
    names = ["number", "text", "whole"]
    types = [pa.float64(), pa.string(), pa.int64()]
    columns = [pa.array([row[i] for row in rows], kind) for i, kind in enumerate(types)]
    table = pa.table(columns, names=names)
    found = json.loads(encode(table, "json"), parse_constant=pytest.fail)
    finite = [(x if x is not None and math.isfinite(x) else None, text, whole) for x, text, whole in rows]
    assert found == [dict(zip(names, row, strict=True)) for row in finite]


def test_values_that_json_has_no_type_for() -> None:
    table = pa.table(
        {
            "sum": pa.array([Decimal(10**30)], pa.decimal128(38, 0)),
            "price": pa.array([Decimal("1.25")], pa.decimal128(9, 2)),
            "day": pa.array([date(2026, 1, 2)]),
            "raw": pa.array([b"\x00\xff"]),
            "list": pa.array([[1.5, math.nan, None]]),
            "struct": pa.array([{"a": {"b": 1}}]),
            "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
            "kind": pa.array(["x"]).dictionary_encode(),
            "far": pa.array([316_516_000_000 * 10**6], pa.timestamp("us")),
            "half": pa.array([math.inf], pa.float32()),
            "nothing": pa.nulls(1),
        }
    )
    (row,) = json.loads(encode(table, "json"))
    far = row.pop("far")
    assert row == {
        "sum": 10**30,
        "price": 1.25,
        "day": "2026-01-02",
        "raw": "00ff",
        "list": [1.5, None, None],
        "struct": {"a": {"b": 1}},
        "map": [["k", 1]],
        "kind": "x",
        "half": None,
        "nothing": None,
    }
    assert far.startswith("11999-12-")
    (line,) = csv.DictReader(io.StringIO(encode(table, "csv").decode()))
    assert (line["sum"], line["raw"], line["kind"]) == (str(10**30), "00ff", "x")
    assert json.loads(line["list"]) == [1.5, None, None]
    assert json.loads(line["struct"]) == {"a": {"b": 1}}
    for name in ("arrow", "parquet"):
        assert encode(table, name)
