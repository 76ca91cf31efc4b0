"""A Delta table of Parquet files. Each batch of rows is appended exactly once.

Every append carries a Delta application transaction (the ledger's identity, the batch number), and the table skips a
batch whose number it has. So a service that died between an append and its note in the ledger asks ``holds`` and
continues. When ``append`` returns, the batch is on the disk.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import structlog
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction, write_deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError

from creditgrid.service.results.delta_log import Repair, TableLog

# A checkpoint forgets removed files at once: ``Upkeep.vacuum`` lists the files itself.
_CONFIGURATION = {"delta.deletedFileRetentionDuration": "interval 0 seconds"}
NO_HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)

log = structlog.get_logger()


class TableFiles(NamedTuple):
    """The Parquet files of one version of the table."""

    root: str
    paths: tuple[str, ...]  # below root
    schema: pa.Schema  # of the whole table; a file, or all of them, may lack columns
    uniform: bool  # all files have the same columns


class AppendedTable:
    """The table in the directory ``path``. One thread appends; any thread may read.

    Args:
        path: the directory, which the first append creates.
        application: the identity of the ledger, which marks this ledger's batches.
    """

    partition: str
    """The column by which the files are divided."""
    advice: str
    """What to do when the table is damaged and there is no backup."""

    def __init__(self, path: Path, application: str) -> None:
        self.path, self.log = path, TableLog(path, self.advice)
        self._application = application
        self._lock = threading.Lock()
        self._table: DeltaTable | None = None
        self._writer: DeltaTable | None = None  # of the thread that appends
        self._appended: int | None = None  # the last batch that this process appended; None after a failure
        self._files: tuple[int, TableFiles] | None = None  # of a version of the table
        self._file_columns: dict[str, tuple[str, ...]] = {}
        self._columns: pa.Schema | None = None  # of the table, until the next append

    def schema(self) -> pa.Schema:
        """The columns of a table without rows."""
        raise NotImplementedError

    def shown(self, stored: pa.Schema) -> pa.Schema:
        """The columns that readers see, given those of the stored rows."""
        return stored

    def columns(self) -> pa.Schema:
        """The columns of the table; none while it has no rows. For the thread that appends."""
        if self._columns is None:
            table = self.delta()
            self._columns = pa.schema([]) if table is None else pa.schema(table.schema())
        return self._columns

    def holds(self, batch: int) -> bool:
        """Whether the batch has been appended."""
        newest = self.newest()
        return newest is not None and newest >= batch

    def newest(self) -> int | None:
        """The number of the last batch; None for a table without batches."""
        table = self.delta()
        return None if table is None else table.transaction_version(self._application)

    def append(self, batch: int, tables: Sequence[pa.Table]) -> None:
        """Append the rows of a batch in one commit, unless the table has the batch. Batch numbers increase.

        When this returns the batch is on the disk, also if an earlier call committed it.

        Raises:
            OSError, DeltaError: the table cannot be written; the caller may repeat the call.
        """
        following = self._appended is not None and self._appended < batch  # then the table cannot have it
        if not following and self.holds(batch):
            self.log.sync()
            return
        writer, self._writer, self._appended = self._writer, None, None  # a failure leaves no state behind
        self._writer = self._write(writer, batch, pa.concat_tables(tables, promote_options="default"))
        self._columns = None
        self.log.sync()
        self._appended = batch

    def _write(self, table: DeltaTable | None, batch: int, rows: pa.Table) -> DeltaTable:
        write_deltalake(
            str(self.path) if table is None else table,
            rows,
            mode="append",
            partition_by=[self.partition],
            schema_mode="merge",
            configuration=_CONFIGURATION,
            commit_properties=CommitProperties(app_transactions=[Transaction(self._application, batch)]),
            post_commithook_properties=NO_HOOKS,
        )
        return DeltaTable(str(self.path)) if table is None else table

    def files(self) -> TableFiles:
        """The current files; they can be read as long as those of ``dataset``."""
        table = self.delta()
        if table is None:
            return TableFiles(str(self.path), (), self.schema(), uniform=True)
        with self._lock:
            version = table.version()
            if self._files is None or self._files[0] != version:
                paths = tuple(path for path, _ in data_files(table))
                self._file_columns = {path: self._columns_of(path) for path in paths}
                uniform = len(set(self._file_columns.values())) <= 1
                self._files = version, TableFiles(str(self.path), paths, self.shown(pa.schema(table.schema())), uniform)
            return self._files[1]

    def _columns_of(self, path: str) -> tuple[str, ...]:
        """The columns of a file; files never change."""
        known = self._file_columns.get(path)
        return tuple(pq.read_schema(self.path / path).names) if known is None else known

    def dataset(self) -> pads.Dataset | None:
        """The current files, as a dataset that pushes filters down; None while there are no rows.

        It can be read until ``Upkeep.vacuum`` removes files that a compaction has replaced.
        """
        table = self.delta()
        if table is None:
            return None
        with self._lock:
            return table.to_pyarrow_dataset()

    def delta(self) -> DeltaTable | None:
        """The newest version of the table; None before the first append."""
        with self._lock:
            try:
                if self._table is None:
                    self._table = DeltaTable(str(self.path))
                else:
                    self._table.update_incremental()
            except TableNotFoundError:
                return None
            return self._table

    def unused_files(self) -> list[Path]:
        """Files outside the current version: replaced ones, those of an open commit, and those that a crash left."""
        present = [path for path in self.path.glob(f"{self.partition}=*/*.parquet*") if path.is_file()]
        present += self.log.strays()
        table = self.delta()  # after the listing, so that no file of a new commit counts as unused
        if table is None:
            return []
        current = {self.path / path for path, _ in data_files(table)}
        return [path for path in present if path not in current]

    # -- after a crash ---------------------------------------------------------------------------------------------

    def repair(self) -> Repair:
        """Make the table whole after a crash or a power cut; nothing else may use it yet.

        A last commit that a power cut tore is set aside, and the table no longer holds its batch. Files of unfinished
        commits and files that compactions replaced are removed: no query of this process reads them.

        Raises:
            CreditGridError: the damage cannot be repaired; the message says what to do.
        """
        self._table = self._writer = None
        done = self.log.repair()
        if done.commits or done.checkpoints:
            aside = {"commits": done.commits, "checkpoints": done.checkpoints}
            log.warning("torn files of a table set aside", table=self.path.name, **aside)
        try:
            table = self.delta()
        except DeltaError as error:
            raise self.log.damaged(str(error)) from error
        if table is not None:
            self._check_files(table)
            self.log.sync()
            if done == Repair():  # otherwise the data files of the torn commit stay until ``vacuum`` removes them
                remove_files(self.unused_files())
        return done

    def _check_files(self, table: DeltaTable) -> None:
        for path, size in data_files(table):
            file = self.path / path
            found = file.stat().st_size if file.is_file() else None
            if found != size:
                problem = "is missing" if found is None else f"has {found:,} bytes instead of {size:,}"
                raise self.log.damaged(f"{file} {problem}")


def data_files(table: DeltaTable) -> list[tuple[str, int]]:
    """The table's files: path below the table, and bytes."""
    actions = pa.table(table.get_add_actions())
    paths, sizes = actions["path"].to_pylist(), actions["size_bytes"].to_pylist()
    return [(unquote(path), size) for path, size in zip(paths, sizes, strict=True)]


def remove_files(paths: Iterable[Path]) -> int:
    """Remove the files; returns how many."""
    removed = 0
    for path in paths:
        path.unlink(missing_ok=True)
        removed += 1
    return removed
