"""What keeps a table small: compaction, checkpoints and vacuum. They run beside appends and queries."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from creditgrid.service.results.delta_table import NO_HOOKS, AppendedTable, data_files, remove_files

LEVELS = ((0, 4 * 2**20, 64), (4 * 2**20, 64 * 2**20, 32))
"""For each level: smallest size, target size (bytes), and how many such files of one partition start a compaction.

With two levels a row is written about three times in its life, and not again by every compaction."""
CHECKPOINT_EVERY = 32
"""Commits between two checkpoints: about the most that a reader applies one by one."""
COMPACTION_TRIES = 5


class Upkeep:
    """For the one thread that maintains a table."""

    def __init__(self, table: AppendedTable) -> None:
        self._table = table
        self._unused_since: dict[Path, float] = {}  # by the monotonic clock

    def compact(self) -> int:
        """Merge the small files of partitions that have many; returns how many files were replaced.

        Rows keep their values bit for bit. Appends continue meanwhile.

        Raises:
            OSError, DeltaError: the files cannot be written.
        """
        replaced = 0
        for smallest, size, many in LEVELS:
            table = self._table.delta()
            if table is None:
                break
            small = Counter(Path(path).parts[0] for path, found in data_files(table) if smallest <= found < size)
            for folder, count in small.items():
                if count >= many:
                    replaced += self._compact(unquote(folder.removeprefix(f"{self._table.partition}=")), size)
        return replaced

    def _compact(self, part: str, size: int) -> int:
        for left in reversed(range(COMPACTION_TRIES)):
            table = DeltaTable(str(self._table.path))
            try:
                done = table.optimize.compact(
                    partition_filters=[(self._table.partition, "=", part)],
                    target_size=size,
                    max_concurrent_tasks=1,
                    post_commithook_properties=NO_HOOKS,
                )
            except CommitFailedError:  # an append added columns meanwhile
                if not left:
                    raise
                continue
            self._table.log.sync()
            return int(done["numFilesRemoved"])
        raise AssertionError("unreachable")

    def checkpoint(self) -> bool:
        """Write a checkpoint after ``CHECKPOINT_EVERY`` commits, and remove the commits before the last but one."""
        log = self._table.log
        if log.since_checkpoint() < CHECKPOINT_EVERY:
            return False
        table = DeltaTable(str(self._table.path))
        log.sync()  # a checkpoint depends on the commits before it
        table.create_checkpoint()
        log.sync_checkpoints()
        log.trim()
        return True

    def vacuum(self, grace_s: float) -> int:
        """Remove files that have been unused for ``grace_s`` seconds; returns how many.

        The monotonic clock of this process counts, so no change of the system's clock takes a file from a query.
        """
        now = time.monotonic()
        self._unused_since = {path: self._unused_since.get(path, now) for path in self._table.unused_files()}
        return remove_files(path for path, since in self._unused_since.items() if now - since >= grace_s)
