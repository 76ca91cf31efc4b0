"""The tables that SQL reads: results, cells and sweeps, as Arrow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import sqlalchemy as sa

from creditgrid.service.ledger import tables
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.reading.sweeps import shown_state, sweep_row, utc
from creditgrid.service.results.table import Results


class SqlTables:
    """Reads from any thread."""

    def __init__(self, ledger: Ledger, results: Results) -> None:
        self._ledger, self._results = ledger, results

    def results(self) -> pa.Table | pads.Dataset:
        """Every row of every sweep."""
        dataset = self._results.dataset()
        return self._results.schema().empty_table() if dataset is None else dataset

    def cell_index(self, sweep: str) -> pa.Table:
        """The sweep's cells in order: ``idx`` and ``cell``."""
        query = (
            sa.select(tables.cells.c.idx, tables.cells.c.key)
            .where(tables.cells.c.sweep == sweep)
            .order_by(tables.cells.c.idx)
        )
        with self._ledger.read() as connection:
            sweep_row(connection, sweep)
            rows = connection.execute(query).all()
        return _table({"idx": pa.int64(), "cell": pa.string()}, rows)

    def cells(self) -> pa.Table:
        """Every sweep's cells: ``sweep``, ``idx``, ``cell``, ``state``."""
        query = sa.select(
            tables.cells.c.sweep, tables.cells.c.idx, tables.cells.c.key, shown_state(tables.cells)
        ).select_from(tables.cells.outerjoin(tables.calls, tables.calls.c.id == tables.cells.c.call))
        with self._ledger.read() as connection:
            rows = connection.execute(query).all()
        return _table({"sweep": pa.string(), "idx": pa.int64(), "cell": pa.string(), "state": pa.string()}, rows)

    def sweeps(self) -> pa.Table:
        """Every sweep: ``id``, ``name``, ``experiment``, ``state``, ``cells``, ``created_at``, ``finished_at``."""
        stamp = pa.timestamp("us", tz="UTC")
        names = {
            "id": pa.string(),
            "name": pa.string(),
            "experiment": pa.string(),
            "state": pa.string(),
            "cells": pa.int64(),
            "created_at": stamp,
            "finished_at": stamp,
        }
        with self._ledger.read() as connection:
            rows = connection.execute(
                sa.select(*(tables.sweeps.c[name] for name in names)).order_by(tables.sweeps.c.seq)
            ).all()
        timed = [(*row[:5], *(None if at is None else utc(at) for at in row[5:])) for row in rows]
        return _table(names, timed)


def _table(columns: dict[str, pa.DataType], rows: Sequence[Sequence[Any]]) -> pa.Table:
    arrays = [pa.array([row[i] for row in rows], kind) for i, kind in enumerate(columns.values())]
    return pa.table(arrays, names=list(columns))
