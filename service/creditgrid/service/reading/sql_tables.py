"""The tables that SQL reads: results, cells and sweeps, as Arrow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.tables import CHUNK, calls, cells, sweeps
from creditgrid.service.reading.sweeps import known_sweep, shown_state, utc
from creditgrid.service.results.table import ResultFiles, Results

_TIME = pa.timestamp("us", tz="UTC")
_INDEX = pa.schema({"idx": pa.int64(), "cell": pa.string()})
_CELLS = pa.schema({"sweep": pa.string(), "idx": pa.int64(), "cell": pa.string(), "state": pa.string()})
_SWEEPS = pa.schema(
    {
        "id": pa.string(),
        "name": pa.string(),
        "experiment": pa.string(),
        "state": pa.string(),
        "cells": pa.int64(),
        "owner": pa.string(),
        "created_at": _TIME,
        "finished_at": _TIME,
    }
)


SCHEMAS = {"cells": _CELLS, "sweeps": _SWEEPS}
ROWS_AT_ONCE = 8192
"""Rows of the ledger in a batch."""
_COLUMNS: Mapping[str, Mapping[str, sa.ColumnElement[Any]]] = {
    "cells": {"sweep": cells.c.sweep, "idx": cells.c.idx, "cell": cells.c.key, "state": shown_state(cells)},
    "sweeps": {name: sweeps.c[name] for name in _SWEEPS.names},
}


class Snapshot:
    """The ledger's tables at one moment, in the batches of ``ROWS_AT_ONCE``."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def scan(self, table: str, columns: Sequence[str], only: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        """Columns of ``cells`` or ``sweeps``; unless ``only`` is None, no cells of other sweeps are needed."""
        schema = pa.schema([SCHEMAS[table].field(name) for name in columns])
        query = sa.select(*(_COLUMNS[table][name] for name in columns))
        if table == "sweeps":
            return _batches(self._connection, query.where(sweeps.c.planned).order_by(sweeps.c.seq), schema)
        hidden = self._connection.scalars(sa.select(sweeps.c.id).where(~sweeps.c.planned)).all()
        if "state" in columns:
            query = query.select_from(cells.outerjoin(calls, calls.c.id == cells.c.call))
        if hidden:
            query = query.where(cells.c.sweep.not_in(hidden))
        if only is not None and len(only) <= CHUNK:  # of more sweeps all cells are sent, and filtered there
            query = query.where(cells.c.sweep.in_(only))
        return _batches(self._connection, query, schema)


class SqlTables:
    """Reads from any thread; the ledger's tables come in batches, because a ledger has millions of cells."""

    schemas = SCHEMAS

    def __init__(self, ledger: Ledger, results: Results) -> None:
        self._ledger, self._results = ledger, results

    def results(self) -> ResultFiles:
        """The files with the rows of all sweeps."""
        return self._results.files()

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """The tables of the ledger, until the end of the context."""
        with self._ledger.read() as connection:
            yield Snapshot(connection)

    def cell_index(self, sweep: str) -> pa.Table:
        """The index and the key of each cell of the sweep, in order.

        Raises:
            NotFoundError: for an unknown sweep.
        """
        query = sa.select(cells.c.idx, cells.c.key).where(cells.c.sweep == sweep).order_by(cells.c.idx)
        with self._ledger.read() as connection:
            known_sweep(connection, sweep)
            return pa.Table.from_batches(_batches(connection, query, _INDEX), _INDEX)


def _batches(connection: sa.Connection, query: sa.Select[Any], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    result = connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE})
    for rows in result.partitions():
        columns = zip(*rows, strict=True)
        arrays = [_array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
        yield pa.record_batch(arrays, schema=schema)


def _array(column: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if kind == _TIME:
        column = [None if seconds is None else utc(seconds) for seconds in column]
    return pa.array(column, kind)
