"""The rows of one sweep, in the order of its cells, a batch at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from creditgrid.core.experiments.registry import registry
from creditgrid.core.rows import schema as experiment_schema
from creditgrid.service.reading.formats import BATCH_ROWS
from creditgrid.service.reading.sql_tables import SqlTables
from creditgrid.service.reading.sweeps import Sweeps
from creditgrid.service.results.table import Results

MEMORY = "512MB"
"""DuckDB sorts within this and spills the rest to a temporary directory."""
INNER = ("layer", "epoch")
"""Columns that order the rows of one cell, where an experiment has them."""


class Rows:
    """Reads from any thread."""

    def __init__(self, sweeps: Sweeps, sql_tables: SqlTables, results: Results) -> None:
        self._sweeps, self._tables, self._results = sweeps, sql_tables, results

    def of(self, sweep: str, only: Collection[str] | None = None) -> pa.RecordBatchReader:
        """The rows of the sweep's cells, whichever sweep computed them.

        Args:
            only: the columns to read; the default is all columns of the sweep's experiment. A column that the
                experiment declares and no row has is null.

        Raises:
            NotFoundError: for an unknown sweep.
        """
        experiment = self._sweeps.get(sweep).experiment
        index = self._tables.cell_index(sweep)
        dataset = self._results.dataset()
        installed = registry().experiments.get(experiment)
        stored = self._results.schema() if dataset is None else dataset.schema
        schema = stored if installed is None else experiment_schema(installed)
        schema = pa.schema([field for field in schema if only is None or field.name in only])
        if dataset is None:
            return schema.empty_table().to_reader()
        # A filter of the scan: DuckDB joins only rows of the sweep.
        its_rows = pads.field("cell").isin(index["cell"].combine_chunks()) & (pads.field("experiment") == experiment)
        columns = [f'r."{field.name}"' if field.name in stored.names else f'NULL AS "{field.name}"' for field in schema]
        order = ["i.idx", *(f'r."{inner}"' for inner in INNER if inner in stored.names)]
        sql = f"SELECT {', '.join(columns)} FROM results r JOIN cells i USING (cell) ORDER BY {', '.join(order)}"  # noqa: S608 - names from schemas
        batches = _batches(sql, {"results": dataset.filter(its_rows), "cells": index}, schema)
        return pa.RecordBatchReader.from_batches(schema, batches)


def _batches(sql: str, tables: dict[str, object], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    with tempfile.TemporaryDirectory(prefix="creditgrid-") as spill:
        settings = {
            "memory_limit": MEMORY,
            "threads": 2,
            "temp_directory": spill,
            "autoinstall_known_extensions": False,
        }
        with duckdb.connect(":memory:", config=settings) as connection:
            connection.execute("SET TimeZone = 'UTC'")  # an option only once the connection has its extensions
            for name, table in tables.items():
                connection.register(name, table)
            for batch in connection.sql(sql).to_arrow_reader(BATCH_ROWS):
                yield batch.cast(schema)
