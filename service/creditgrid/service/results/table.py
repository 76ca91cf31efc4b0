"""The results table: one Delta table of Parquet files, appended to exactly once a batch.

Every append carries a Delta application transaction (this ledger's name, the batch number). A batch whose number the
table has seen is not appended again, so a service that died between the append and its own note of it can ask
``holds`` and go on. A batch is on the disk when ``append`` returns.

``compact``, ``checkpoint`` and ``vacuum`` keep the table small; they may run while batches are appended and read.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as pads
import structlog
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from creditgrid.core.errors import CreditGridError
from creditgrid.core.experiments.registry import registry
from creditgrid.core.rows import schema as experiment_schema
from creditgrid.service.results.delta_log import Repair, TableLog

PARTITION = "experiment"
LEVELS = ((0, 4 * 2**20, 64), (4 * 2**20, 64 * 2**20, 32))
"""Bytes from and below which a file is small, and so many such files of one experiment become few.

Two levels, so that a row is written about three times in its life and not again with every compaction."""
CHECKPOINT_EVERY = 32
"""Commits between two checkpoints: a reader goes through at most about so many, one by one."""
COMPACTION_TRIES = 5

# What a checkpoint leaves out at once: files that are no part of the table any more. ``vacuum`` knows them by itself.
_CONFIGURATION = {"delta.deletedFileRetentionDuration": "interval 0 seconds"}
_NO_HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)

log = structlog.get_logger()


class Results:
    """The table below ``path``. One thread appends, one maintains; any may read."""

    def __init__(self, path: Path, application: str) -> None:
        self.path = path
        self._path, self._application = path, application
        self._log = TableLog(path)
        self._lock = threading.Lock()
        self._table: DeltaTable | None = None
        self._writer: DeltaTable | None = None  # of the thread that appends
        self._appended: int | None = None  # the last batch that this process appended, and nothing failed since
        self._held: pa.Schema | None = None  # the table's columns, until the next append
        self._dead: dict[Path, float] = {}  # files that are no part of the table, and when that was first seen

    # -- rows ------------------------------------------------------------------------------------------------------

    def holds(self, batch: int) -> bool:
        """Whether the batch has been appended."""
        newest = self.newest()
        return newest is not None and newest >= batch

    def newest(self) -> int | None:
        """The number of the last batch that has been appended; None while there is none."""
        table = self._open()
        return None if table is None else table.transaction_version(self._application)

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
        """Append the rows of a batch in one commit, unless the table holds it. Batches are numbered upwards.

        When this returns the batch is on the disk, also if it was an earlier call that committed it.

        Raises:
            OSError, DeltaError: when that cannot be done; the same call may be made again.
        """
        following = self._appended is not None and self._appended < batch  # then there is no need to look
        if not following and self.holds(batch):
            self._log.sync()
            return
        writer, self._writer, self._appended = self._writer, None, None  # after a failure all is looked up anew
        self._writer = self._write(writer, batch, pa.concat_tables(tables, promote_options="default"))
        self._held = None
        self._log.sync()
        self._appended = batch

    def _write(self, table: DeltaTable | None, batch: int, rows: pa.Table) -> DeltaTable:
        write_deltalake(
            str(self._path) if table is None else table,
            rows,
            mode="append",
            partition_by=[PARTITION],
            schema_mode="merge",
            configuration=_CONFIGURATION,
            commit_properties=CommitProperties(app_transactions=[Transaction(self._application, batch)]),
            post_commithook_properties=_NO_HOOKS,
        )
        return DeltaTable(str(self._path)) if table is None else table

    def diverged(self, cells: Sequence[str]) -> list[str]:
        """Those of the cells that have a row with a number that is not finite."""
        dataset = self.dataset() if cells else None
        if dataset is None:
            return []
        wanted = pads.field("diverged") & pads.field("cell").isin(list(cells))
        return sorted(set(dataset.to_table(columns=["cell"], filter=wanted)["cell"].to_pylist()))

    def dataset(self) -> pads.Dataset | None:
        """The current files, as a dataset that filters push down into; None while there are no rows.

        It can be read for as long as ``vacuum`` is told to leave replaced files alone.
        """
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

    # -- after a crash ---------------------------------------------------------------------------------------------

    def repair(self) -> Repair:
        """Make the table whole after whatever ended the process before, or the machine; nothing else may use it yet.

        A last commit that a loss of power tore is set aside: its batch is not held. Files of commits that never came
        about, and those that compactions replaced, are removed: no query of this process reads them.

        Raises:
            CreditGridError: for damage that cannot be mended, saying what to do.
        """
        self._table = self._writer = None
        done = self._log.repair()
        if done.commits or done.checkpoints:
            log.warning("torn files of the results table set aside", commits=done.commits, checkpoints=done.checkpoints)
        try:
            table = self._open()
        except DeltaError as error:
            raise self._unusable(str(error)) from error
        if table is not None:
            self._check(table)
            self._log.sync()
            if done == Repair():  # else what was set aside stays whole until it is as old as any other
                _remove(self._unused())
        return done

    def _check(self, table: DeltaTable) -> None:
        for path, size in _files(table):
            file = self._path / path
            found = file.stat().st_size if file.is_file() else None
            if found != size:
                told = "is gone" if found is None else f"has {found:,} bytes of {size:,}"
                raise self._unusable(f"{file} {told}")

    def _unusable(self, why: str) -> CreditGridError:
        return CreditGridError(
            f"the results table is damaged and cannot be mended here: {why}. Bring back the folder {self._path} from a "
            "backup; or move it and the ledger away and submit the sweeps again: the artifacts are found, and the "
            "cells are measured anew"
        )

    # -- upkeep ----------------------------------------------------------------------------------------------------

    def compact(self) -> int:
        """Make few files of many small ones, of experiments that have many; returns how many were replaced.

        Rows keep their values bit for bit. Appends go on meanwhile.

        Raises:
            OSError, DeltaError: when the files cannot be written.
        """
        replaced = 0
        for smallest, size, many in LEVELS:
            table = self._open()
            if table is None:
                break
            small = Counter(Path(path).parts[0] for path, found in _files(table) if smallest <= found < size)
            for folder, count in small.items():
                if count >= many:
                    replaced += self._compact(_value(folder), size)
        return replaced

    def _compact(self, experiment: str, size: int) -> int:
        for left in reversed(range(COMPACTION_TRIES)):
            table = DeltaTable(str(self._path))
            try:
                done = table.optimize.compact(
                    partition_filters=[(PARTITION, "=", experiment)],
                    target_size=size,
                    max_concurrent_tasks=1,
                    post_commithook_properties=_NO_HOOKS,
                )
            except CommitFailedError:  # an append brought new columns meanwhile
                if not left:
                    raise
                continue
            self._log.sync()
            return int(done["numFilesRemoved"])
        raise AssertionError("unreachable")

    def checkpoint(self) -> bool:
        """Write a checkpoint if enough commits came since the last, and forget the commits that two stand for."""
        if self._log.since_checkpoint() < CHECKPOINT_EVERY:
            return False
        table = DeltaTable(str(self._path))
        self._log.sync()  # what it stands on comes first
        table.create_checkpoint()
        self._log.sync_checkpoints()
        self._log.trim()
        return True

    def vacuum(self, grace_s: float) -> int:
        """Remove files that have been no part of the table for so many seconds of this process; returns how many.

        It is seconds of this process's own time: no clock that jumps takes a file from a query that reads it.
        """
        now = time.monotonic()
        self._dead = {path: self._dead.get(path, now) for path in self._unused()}
        return _remove(path for path, since in self._dead.items() if now - since >= grace_s)

    def _unused(self) -> list[Path]:
        """Files that are no part of the table: replaced ones, those of a commit under way, and what crashes left."""
        there = [path for path in self._path.glob(f"{PARTITION}=*/*.parquet*") if path.is_file()]
        there += self._log.strays()
        table = self._open()  # after the listing: what it holds by now is no stray
        if table is None:
            return []
        live = {self._path / path for path, _ in _files(table)}
        return [path for path in there if path not in live]


def _files(table: DeltaTable) -> list[tuple[str, int]]:
    """The table's files: path below the table, and bytes."""
    actions = pa.table(table.get_add_actions())
    paths, sizes = actions["path"].to_pylist(), actions["size_bytes"].to_pylist()
    return [(unquote(path), size) for path, size in zip(paths, sizes, strict=True)]


def _value(folder: str) -> str:
    return unquote(folder.removeprefix(f"{PARTITION}="))


def _remove(paths: Iterable[Path]) -> int:
    removed = 0
    for path in paths:
        path.unlink(missing_ok=True)
        removed += 1
    return removed
