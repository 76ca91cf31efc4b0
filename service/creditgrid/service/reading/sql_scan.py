"""The ledger's tables in a query's process: the service sends the columns and rows that DuckDB asks for."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs

from creditgrid.service.reading.sql_protocol import NEXT, SCAN


class Link:
    """The connection to the service. DuckDB's threads share it: one frame and its answer at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()
        self._scans = 0

    def reset(self) -> None:
        """Scans of the next request are numbered from 0."""
        self._scans = 0

    def send(self, kind: bytes, *payload: bytes) -> None:
        """Send a frame."""
        frame = b"".join([kind, *payload])
        with self._lock:
            self._connection.send_bytes(frame)

    def scan(self, table: str, schema: pa.Schema, only: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        """The batches of a table of the ledger, with these columns; of the sweeps ``only``, unless it is None."""
        with self._lock:
            number, self._scans = self._scans, self._scans + 1
            wanted = {"table": table, "columns": schema.names, "only": only}
            self._connection.send_bytes(SCAN + json.dumps(wanted).encode())
        while message := self._next(number):
            yield pa.ipc.read_record_batch(pa.py_buffer(message), schema)

    def _next(self, number: int) -> bytes:
        with self._lock:
            self._connection.send_bytes(NEXT + str(number).encode())
            return self._connection.recv_bytes()


class LedgerTable(pads.Dataset):  # type: ignore[misc]  # pyarrow has no types
    """A table of the ledger as DuckDB scans it. A scan reads it when the query runs, not before.

    DuckDB hands a dataset the columns and the filters of each scan, and relies on their being applied.
    """

    def __init__(self, link: Link, name: str, schema: pa.Schema) -> None:
        self._link, self._name, self._schema = link, name, schema

    @property
    def schema(self) -> pa.Schema:
        """The columns of the table."""
        return self._schema

    def scanner(self, columns: Sequence[str] | None = None, filter: Any = None, **_: Any) -> LedgerTable._Scan:
        """The rows that pass the filter, with these columns."""
        chosen = self._schema.names if columns is None else list(columns)
        text = str(filter)  # a name in it may also be part of a text that is compared: then one column more is read
        needed = [
            field for field in self._schema if field.name in chosen or (filter is not None and field.name in text)
        ]
        return self._Scan(self, pa.schema(needed), chosen, filter)

    def _sweeps(self, filter: Any) -> list[str] | None:
        """The sweeps that may pass the filter; None for any."""
        if self._name not in ("cells", "stages") or filter is None or "sweep" not in str(filter):
            return None
        ids = pa.schema({"id": pa.string()})
        known = [name for batch in self._link.scan("sweeps", ids, None) for name in batch["id"].to_pylist()]
        return _pass(filter, known, self._schema)

    class _Scan:
        """What DuckDB reads."""

        def __init__(self, table: LedgerTable, needed: pa.Schema, chosen: Sequence[str], filter: Any) -> None:
            self._table, self._needed, self._filter = table, needed, filter
            self._schema = pa.schema([table.schema.field(name) for name in chosen])

        def to_reader(self) -> pa.RecordBatchReader:
            """The batches, read from the service one by one."""
            return pa.RecordBatchReader.from_batches(self._schema, self._batches())

        def _batches(self) -> Iterator[pa.RecordBatch]:
            table = self._table
            for batch in table._link.scan(table._name, self._needed, table._sweeps(self._filter)):
                passed = batch if self._filter is None else batch.filter(self._filter)
                yield passed.select(self._schema.names)


def _pass(filter: Any, sweeps: Sequence[str], schema: pa.Schema) -> list[str]:
    """Those of the sweeps whose rows may pass the filter, by Arrow's own simplification of it.

    Each sweep stands for a file that has only its rows. The files are never opened.
    """
    files, disk = pads.ParquetFileFormat(), pa.fs.LocalFileSystem()
    column = pads.field("sweep")
    made = [files.make_fragment(sweep, filesystem=disk, partition_expression=column == sweep) for sweep in sweeps]
    dataset = pads.FileSystemDataset(made, schema, files, filesystem=disk)
    return [fragment.path for fragment in dataset.get_fragments(filter=filter)]
