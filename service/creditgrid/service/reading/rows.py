"""The rows of one sweep, in the order of its cells, and its curves."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads

from creditgrid.core.errors import CreditGridError
from creditgrid.core.rows import schema as experiment_schema
from creditgrid.service.codes import Codes
from creditgrid.service.reading.formats import BATCH_ROWS
from creditgrid.service.reading.sql import Query
from creditgrid.service.reading.sql_tables import SqlTables
from creditgrid.service.reading.sweeps import Sweeps, measuring
from creditgrid.service.results.table import Results

MEMORY = "512MB"
"""DuckDB sorts within this and spills the rest to a temporary directory."""
SQL_TYPES = {
    pa.float64(): "DOUBLE",
    pa.int64(): "BIGINT",
    pa.string(): "VARCHAR",
    pa.bool_(): "BOOLEAN",
    pa.timestamp("us", tz="UTC"): "TIMESTAMPTZ",
}
INNER = ("layer", "epoch")
"""Columns that order the rows of one cell, where an experiment has them."""


class Rows:
    """Reads from any thread."""

    def __init__(self, sweeps: Sweeps, sql_tables: SqlTables, results: Results, codes: Codes) -> None:
        self._sweeps, self._tables, self._results, self._codes = sweeps, sql_tables, results, codes

    def of(self, sweep: str, only: Collection[str] | None = None) -> pa.RecordBatchReader:
        """The rows of the sweep's cells, whichever sweep computed them.

        Args:
            only: the columns to read; the default is all columns of the sweep's experiment. A column that the
                experiment declares and no row has is null.

        Raises:
            NotFoundError: for an unknown sweep.
        """
        index = self._tables.cell_index(sweep)
        dataset = self._results.dataset()
        stored = self._results.schema() if dataset is None else dataset.schema
        experiment, schema = self._columns(sweep, stored, only)
        if dataset is None:
            return schema.empty_table().to_reader()
        # A filter of the scan: DuckDB joins only rows of the sweep.
        its_rows = pads.field("cell").isin(index["cell"].combine_chunks()) & (pads.field("experiment") == experiment)
        sql = f"{_select(schema, stored)} ORDER BY {_order(stored)}"
        batches = _batches(sql, {"results": dataset.filter(its_rows), "cells": index}, schema)
        return pa.RecordBatchReader.from_batches(schema, batches)

    def query(self, sweep: str, format_: str) -> Query:
        """The query for the rows of ``of``, all columns, for a ``Sandbox``.

        Raises:
            NotFoundError: for an unknown sweep.
        """
        stored = self._tables.results().schema
        experiment, schema = self._columns(sweep, stored, None)
        its_rows = f"i.sweep = {_text(sweep)} AND r.experiment = {_text(experiment)}"
        return Query(f"{_select(schema, stored)} WHERE {its_rows} ORDER BY {_order(stored)}", format_, trusted=True)

    def curves_query(self, sweep: str, format_: str) -> Query:
        """The query for the curves of the runs that the sweep needs, and of those that it has computed.

        Raises:
            NotFoundError: for an unknown sweep.
        """
        self._sweeps.get(sweep)
        its_runs = f"SELECT run FROM stages WHERE sweep = {_text(sweep)}"  # noqa: S608 - quoted
        wanted = f"sweep = {_text(sweep)} OR run IN ({its_runs})"
        return Query(f"SELECT * FROM curves WHERE {wanted} ORDER BY kind, run, epoch", format_, trusted=True)  # noqa: S608

    def _columns(self, sweep: str, stored: pa.Schema, only: Collection[str] | None) -> tuple[str, pa.Schema]:
        """The sweep's experiment, and the columns of its rows."""
        view = self._sweeps.get(sweep)
        experiment = view.experiment
        try:
            installed = measuring(self._codes, view)
        except (CreditGridError, ValueError):  # it is gone, or does not fit to what is installed: the rows are there
            installed = None
        schema = stored if installed is None else experiment_schema(installed)
        return experiment, pa.schema([field for field in schema if only is None or field.name in only])


def _select(schema: pa.Schema, stored: pa.Schema) -> str:
    columns = [
        f'r."{field.name}"' if field.name in stored.names else f'NULL::{SQL_TYPES[field.type]} AS "{field.name}"'
        for field in schema
    ]
    return f"SELECT {', '.join(columns)} FROM results r JOIN cells i USING (cell)"  # noqa: S608 - names from schemas


def _order(stored: pa.Schema) -> str:
    return ", ".join(["i.idx", *(f'r."{inner}"' for inner in INNER if inner in stored.names)])


def _text(value: str) -> str:
    """The value as a literal of SQL."""
    return "'" + value.replace("'", "''") + "'"


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
