"""Rows as Arrow, Parquet, CSV or JSON: the encoders, a batch at a time."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, time
from decimal import Decimal
from json.encoder import encode_basestring_ascii
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

BATCH_ROWS = 8192
"""Rows that are encoded at a time."""


def arrow_stream(reader: pa.RecordBatchReader) -> Iterator[bytes]:
    """An Arrow IPC stream."""
    return _encode(reader, reader.schema, pa.ipc.new_stream)


def parquet_file(reader: pa.RecordBatchReader) -> Iterator[bytes]:
    """A Parquet file; each batch is a row group."""
    return _encode(reader, reader.schema, pq.ParquetWriter)


def csv_text(reader: pa.RecordBatchReader) -> Iterator[bytes]:
    """CSV in UTF-8 with a header line; null is an empty field, and nested values are JSON."""
    fields = [pa.field(field.name, field.type if _flat(field.type) else pa.string()) for field in reader.schema]
    schema = pa.schema(fields)
    batches = (
        pa.record_batch([_csv_column(*pair) for pair in zip(batch, schema.types, strict=True)], schema=schema)
        for batch in reader
    )
    return _encode(batches, schema, pacsv.CSVWriter)


def _encode(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, writer_of: Callable[[io.BytesIO, pa.Schema], Any]
) -> Iterator[bytes]:
    sink = io.BytesIO()
    with writer_of(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            yield _take(sink)
    yield _take(sink)


def _take(sink: io.BytesIO) -> bytes:
    """The bytes since the last call; Arrow counts its position in the file itself."""
    data = sink.getvalue()
    sink.seek(0)
    sink.truncate()
    return data


def json_text(reader: pa.RecordBatchReader) -> Iterator[bytes]:
    """A JSON array of objects, one for each row. Timestamps are ISO 8601; a number that is not finite is null."""
    names = [json.dumps(name) + ": " for name in reader.schema.names]
    before = "["
    for batch in reader:
        columns = [[name + value for value in _json_values(batch.column(i))] for i, name in enumerate(names)]
        rows = [f"{{{', '.join(row)}}}" for row in zip(*columns, strict=True)]
        if rows:
            yield f"{before}\n{f',{chr(10)}'.join(rows)}".encode()
            before = ","
    yield b"[]\n" if before == "[" else b"\n]\n"


ENCODERS: dict[str, Callable[[pa.RecordBatchReader], Iterator[bytes]]] = {
    "arrow": arrow_stream,
    "parquet": parquet_file,
    "csv": csv_text,
    "json": json_text,
}


def _json_values(column: pa.Array) -> list[str]:
    """Each value as JSON text."""
    kind = column.type
    if pa.types.is_floating(kind):
        column = pc.if_else(pc.is_finite(column), column, None)
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        return ["null" if value is None else repr(value) for value in column.to_pylist()]
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind):
        # Arrow makes the text, because Python's datetime lacks the years before 1 and after 9999, and nanoseconds.
        column = pc.replace_substring(column.cast(pa.string()), " ", "T", max_replacements=1)
    if pa.types.is_string(column.type):
        return ["null" if value is None else encode_basestring_ascii(value) for value in column.to_pylist()]
    return [json.dumps(_plain(value)) for value in column.to_pylist()]


def _plain(value: Any) -> Any:
    """The value in the types of JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)


def _flat(kind: pa.DataType) -> bool:
    """Whether Arrow writes values of this type to CSV as this module wants them."""
    simple = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_string)
    dated = (pa.types.is_timestamp, pa.types.is_date, pa.types.is_time, pa.types.is_large_string)
    return any(test(kind) for test in (*simple, *dated))


def _csv_column(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column.type == kind:
        return column
    plain = [_plain(value) for value in column.to_pylist()]
    return pa.array([v if v is None or isinstance(v, str) else json.dumps(v) for v in plain], pa.string())
