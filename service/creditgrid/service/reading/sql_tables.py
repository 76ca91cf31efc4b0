"""The tables that SQL reads: results, cells and sweeps, as Arrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import sqlalchemy as sa

from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.tables import calls, cells, sweeps
from creditgrid.service.reading.sweeps import ROWS_AT_ONCE, known_sweep, shown_state, utc
from creditgrid.service.results.table import Results

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


class SqlTables:
    """Reads from any thread; the ledger's tables come in batches, because a ledger has millions of cells."""

    def __init__(self, ledger: Ledger, results: Results) -> None:
        self._ledger, self._results = ledger, results

    def results(self) -> pads.Dataset | pa.RecordBatchReader:
        """The rows of all sweeps."""
        dataset = self._results.dataset()
        return self._results.schema().empty_table().to_reader() if dataset is None else dataset

    def cells(self) -> pa.RecordBatchReader:
        """The cells of all sweeps."""
        query = sa.select(cells.c.sweep, cells.c.idx, cells.c.key, shown_state(cells))
        return self._reader(query.select_from(cells.outerjoin(calls, calls.c.id == cells.c.call)), _CELLS)

    def sweeps(self) -> pa.RecordBatchReader:
        """All sweeps."""
        return self._reader(sa.select(*(sweeps.c[name] for name in _SWEEPS.names)).order_by(sweeps.c.seq), _SWEEPS)

    def cell_index(self, sweep: str) -> pa.Table:
        """The index and the key of each cell of the sweep, in order.

        Raises:
            NotFoundError: for an unknown sweep.
        """
        with self._ledger.read() as connection:
            known_sweep(connection, sweep)
        query = sa.select(cells.c.idx, cells.c.key).where(cells.c.sweep == sweep).order_by(cells.c.idx)
        return self._reader(query, _INDEX).read_all()

    def _reader(self, query: sa.Select[Any], schema: pa.Schema) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(schema, self._batches(query, schema))

    def _batches(self, query: sa.Select[Any], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        with self._ledger.read() as connection:
            result = connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE})
            for rows in result.partitions():
                arrays = [_array([row[i] for row in rows], field.type) for i, field in enumerate(schema)]
                yield pa.record_batch(arrays, schema=schema)


def _array(column: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if kind == _TIME:
        column = [None if seconds is None else utc(seconds) for seconds in column]
    return pa.array(column, kind)
