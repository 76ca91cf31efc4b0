"""The results table: one Delta table of Parquet files, appended to exactly once a batch.

Every append carries a Delta application transaction (this ledger's name, the batch number). A batch whose number the
table has seen is not appended again, so a service that died between the append and its own note of it can ask
``holds`` and go on.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction, write_deltalake
from deltalake.exceptions import TableNotFoundError

from creditgrid.core.registry import registry
from creditgrid.core.rows import schema as experiment_schema

COMPACT_EVERY = 64
"""Appends between two compactions: small files of many commits become few large ones."""
VACUUM_HOURS = 24
"""Files that a compaction replaced are kept this long, for queries that still read them."""


class Results:
    """The table below ``path``. One thread appends; any may read."""

    def __init__(self, path: Path, application: str) -> None:
        self._path, self._application = path, application
        self._lock = threading.Lock()
        self._table: DeltaTable | None = None
        self._held: pa.Schema | None = None  # the table's columns, until the next append
        self._appends = 0

    def holds(self, batch: int) -> bool:
        """Whether the batch has been appended."""
        table = self._open()
        if table is None:
            return False
        version = table.transaction_version(self._application)
        return version is not None and version >= batch

    def misfit(self, rows: pa.Schema) -> str | None:
        """What keeps rows of this schema out of the table: a column that it holds with another type, if there is one.

        A plugin may come back with other types, or another one with its names, after rows were written.
        """
        held = self._held
        if held is None:
            table = self._open()
            held = self._held = pa.schema([]) if table is None else pa.schema(table.schema())
        types = dict(zip(held.names, held.types, strict=True))
        for column in rows:
            if (kept := types.get(column.name, column.type)) != column.type:
                return f"the column {column.name!r} is {column.type} here and {kept} in the rows there are: rename it"
        return None

    def append(self, batch: int, tables: Sequence[pa.Table]) -> None:
        """Append the rows of a batch in one commit, unless the table holds it. Batches are numbered upwards."""
        if self.holds(batch):
            return
        rows = pa.concat_tables(tables, promote_options="default")
        write_deltalake(
            str(self._path),
            rows,
            mode="append",
            partition_by=["experiment"],
            schema_mode="merge",
            commit_properties=CommitProperties(app_transactions=[Transaction(self._application, batch)]),
            post_commithook_properties=PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False),
        )
        self._held = None
        self._appends += 1
        if self._appends % COMPACT_EVERY == 0:
            self._compact()

    def dataset(self) -> pads.Dataset | None:
        """The current files, as a dataset that filters push down into; None while there are no rows."""
        table = self._open()
        if table is None:
            return None
        with self._lock:
            return table.to_pyarrow_dataset()

    def schema(self) -> pa.Schema:
        """The columns of every experiment that is installed, for a table that has no rows yet."""
        fields: dict[str, pa.Field] = {}
        for experiment in registry().experiments.values():
            for field in experiment_schema(experiment):
                fields.setdefault(field.name, field)
        return pa.schema(list(fields.values()))

    def _open(self) -> DeltaTable | None:
        with self._lock:
            try:
                if self._table is None:
                    self._table = DeltaTable(str(self._path))
                else:
                    self._table.update_incremental()
            except TableNotFoundError:
                return None
            return self._table

    def _compact(self) -> None:
        table = self._open()
        if table is not None:
            table.optimize.compact()
            table.vacuum(retention_hours=VACUUM_HOURS, enforce_retention_duration=False, dry_run=False)
