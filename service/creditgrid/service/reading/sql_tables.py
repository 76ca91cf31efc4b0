"""The tables that SQL reads: results, curves, cells, stages and sweeps, as Arrow."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from creditgrid.service.ledger.engine import JsonText
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.tables import CHUNK, calls, cells, stages, sweeps, tasks
from creditgrid.service.reading.sweeps import known_sweep, shown_state, utc
from creditgrid.service.results.curves import Curves
from creditgrid.service.results.delta_table import TableFiles
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


_STAGES = pa.schema({name: pa.string() for name in ("sweep", "key", "kind", "state", "run")})

SCHEMAS = {"cells": _CELLS, "stages": _STAGES, "sweeps": _SWEEPS}
ROWS_AT_ONCE = 2**15
"""Rows of the ledger in a batch."""
_scans = itertools.count()
_COLUMNS: Mapping[str, Mapping[str, sa.ColumnElement[Any]]] = {
    "cells": {"sweep": cells.c.sweep, "idx": cells.c.idx, "cell": cells.c.key, "state": shown_state(cells)},
    "stages": {
        "sweep": stages.c.sweep,
        "key": stages.c.key,
        "kind": tasks.c.kind,
        "state": shown_state(stages),
        "run": JsonText(tasks.c.shared, sa.literal_column("'group'", sa.String)),
    },
    "sweeps": {name: sweeps.c[name] for name in _SWEEPS.names},
}


class Snapshot:
    """The ledger's tables at one moment, in batches."""

    def __init__(self, connection: sa.Connection, scans: ExitStack) -> None:
        self._connection, self._scans = connection, scans

    def scan(self, table: str, columns: Sequence[str], only: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        """Columns of a table; unless ``only`` is None, no cells and stages of other sweeps are needed."""
        schema = pa.schema([SCHEMAS[table].field(name) for name in columns])
        if table == "sweeps":
            query = sa.select(*(_COLUMNS[table][name] for name in columns)).where(sweeps.c.planned)
            return self._scanned(query.order_by(sweeps.c.seq), schema)
        if only is not None and len(only) > CHUNK:  # of so many sweeps all cells are sent, and DuckDB filters them
            only = None
        hidden = self._connection.scalars(sa.select(sweeps.c.id).where(~sweeps.c.planned)).all()
        if table == "stages":
            return self._scanned(_from_stages(schema, hidden, only), schema)
        if self._connection.dialect.name == "sqlite":
            return self._joined_cells(schema, only, hidden)
        wanted = [cells.c.sweep.not_in(hidden)] if hidden else []
        if only is not None:
            wanted.append(cells.c.sweep.in_(only))
        return self._scanned(_from_cells(schema, lambda column: column).where(*wanted), schema)

    def _scanned(self, query: sa.Select[Any], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        return self._scans.enter_context(closing(_batches(self._connection, query, schema)))

    def _joined_cells(
        self, schema: pa.Schema, only: Sequence[str] | None, hidden: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        """The cells, where SQLite joins each column of a batch to one text: this takes a third of the time."""
        line = sa.func.char(10)  # which is in no id, key or state
        query = _from_cells(schema, lambda column: sa.func.group_concat(column, line))
        for wanted in self._ranges(only):
            texts = self._connection.execute(query.where(cells.c.sweep.not_in(hidden), *wanted)).one()
            if texts[0] is not None:
                values = [pa.array(str(text).split("\n")) for text in texts]
                yield pa.record_batch(
                    [value.cast(kind) for value, kind in zip(values, schema.types, strict=True)], schema=schema
                )

    def _ranges(self, only: Sequence[str] | None) -> Iterator[list[sa.ColumnElement[bool]]]:
        """Conditions that each select up to ``ROWS_AT_ONCE`` cells, in the order in which SQLite has them."""
        if only is None:
            number = sa.literal_column("cells.rowid", sa.BigInteger)
            newest = self._connection.scalar(sa.select(sa.func.max(number)).select_from(cells)) or 0
            for first in range(0, newest + 1, ROWS_AT_ONCE):
                yield [number >= first, number < first + ROWS_AT_ONCE]
            return
        for sweep in only:
            last = self._connection.scalar(sa.select(sa.func.max(cells.c.idx)).where(cells.c.sweep == sweep))
            for first in range(0, -1 if last is None else last + 1, ROWS_AT_ONCE):
                yield [cells.c.sweep == sweep, cells.c.idx >= first, cells.c.idx < first + ROWS_AT_ONCE]


def _from_stages(schema: pa.Schema, hidden: Sequence[str], only: Sequence[str] | None) -> sa.Select[Any]:
    query = sa.select(*(_COLUMNS["stages"][name] for name in schema.names)).select_from(stages)
    if {"kind", "run"} & set(schema.names):
        query = query.join(tasks, tasks.c.key == stages.c.key)
    if "state" in schema.names:
        query = query.outerjoin(calls, calls.c.id == stages.c.call)
    query = query.where(stages.c.sweep.not_in(hidden)) if hidden else query
    return query if only is None else query.where(stages.c.sweep.in_(only))


def _from_cells(schema: pa.Schema, shown: Callable[[sa.ColumnElement[Any]], sa.ColumnElement[Any]]) -> sa.Select[Any]:
    query = sa.select(*(shown(_COLUMNS["cells"][name]) for name in schema.names)).select_from(cells)
    return query.outerjoin(calls, calls.c.id == cells.c.call) if "state" in schema.names else query


class SqlTables:
    """Reads from any thread; the ledger's tables come in batches, because a ledger has millions of cells."""

    schemas = SCHEMAS

    def __init__(self, ledger: Ledger, results: Results, curves: Curves) -> None:
        self._ledger, self._results, self._curves = ledger, results, curves

    def results(self) -> TableFiles:
        """The files with the rows of all sweeps."""
        return self._results.files()

    def curves(self) -> TableFiles:
        """The files with the curves of all runs."""
        return self._curves.files()

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """The tables of the ledger, until the end of the context."""
        with self._ledger.read() as connection, ExitStack() as scans:  # a scan may end early
            yield Snapshot(connection, scans)

    def cell_index(self, sweep: str) -> pa.Table:
        """The index and the key of each cell of the sweep, in order.

        Raises:
            NotFoundError: for an unknown sweep.
        """
        query = sa.select(cells.c.idx, cells.c.key).where(cells.c.sweep == sweep).order_by(cells.c.idx)
        with self._ledger.read() as connection:
            known_sweep(connection, sweep)
            return pa.Table.from_batches(_batches(connection, query, _INDEX), _INDEX)


def _batches(
    connection: sa.Connection, query: sa.Select[Any], schema: pa.Schema
) -> Generator[pa.RecordBatch, None, None]:
    with closing(_cursor(connection, query)) as cursor:  # the driver's: SQLAlchemy's rows take four times as long
        while rows := cursor.fetchmany(ROWS_AT_ONCE):
            columns = zip(*rows, strict=True)
            arrays = [_array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
            yield pa.record_batch(arrays, schema=schema)


def _cursor(connection: sa.Connection, query: sa.Select[Any]) -> Any:
    """A cursor of the driver that has executed the query, and fetches the rows as they are read."""
    if connection.dialect.name == "sqlite":
        return connection.execute(query).cursor
    text = query.compile(connection, compile_kwargs={"literal_binds": True})
    driver: Any = connection.connection.driver_connection
    cursor = driver.cursor(name=f"scan_{next(_scans)}")  # a cursor without a name would fetch all rows at once
    cursor.execute(str(text))
    return cursor


def _array(column: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if kind == _TIME:
        column = [None if seconds is None else utc(seconds) for seconds in column]
    return pa.array(column, kind)
