"""The rows of one sweep, in the order of its cells, a batch at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import duckdb
import pyarrow as pa

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

    def of(self, sweep: str) -> pa.RecordBatchReader:
        """The rows of the sweep's cells, whoever computed them, with the columns of its experiment alone.

        Columns that the experiment declares and no row has yet are null.

        Raises:
            NotFoundError: for an unknown sweep.
        """
        name = self._sweeps.get(sweep).experiment
        index = self._tables.cell_index(sweep)
        dataset = self._results.dataset()
        installed = registry().experiments.get(name)
        stored = self._results.schema() if dataset is None else dataset.schema
        schema = stored if installed is None else experiment_schema(installed)
        if dataset is None:
            return schema.empty_table().to_reader()
        columns = [f'r."{field.name}"' if field.name in stored.names else f'NULL AS "{field.name}"' for field in schema]
        order = ["i.idx", *(f'r."{inner}"' for inner in INNER if inner in schema.names and inner in stored.names)]
        rows = "results r JOIN cells i USING (cell) WHERE r.experiment = ?"
        sql = f"SELECT {', '.join(columns)} FROM {rows} ORDER BY {', '.join(order)}"  # noqa: S608 - names from schemas
        return pa.RecordBatchReader.from_batches(
            schema, _batches(sql, name, {"results": dataset, "cells": index}, schema)
        )


def _batches(sql: str, experiment: str, tables: dict[str, object], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
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
            for batch in connection.sql(sql, params=[experiment]).to_arrow_reader(BATCH_ROWS):
                yield batch.cast(schema)
