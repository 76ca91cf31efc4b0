"""Rows of finished calls are committed to the results table about once a second, each row exactly once.

A commit has three steps, and each can be the last before a crash:

1. the ledger notes which calls the next batch holds,
2. the batch is appended to the results table, marked with its number,
3. the ledger notes that the calls and their cells succeeded.

After a restart a call with a batch number has succeeded if the table holds that batch, and runs again if not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa
import sqlalchemy as sa
import structlog
from deltalake.exceptions import DeltaError

from creditgrid.service.ledger.batches import next_batch
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.results.table import Results
from creditgrid.workers.runner import Finished

COMMIT_EVERY_S = 1.0
COMMIT_PAUSE_S = 4.0
"""Further seconds before the next try after a commit that failed."""
ROWS_KEPT = 200_000
"""Rows that wait for their commit; a batch of so many is committed at once."""

log = structlog.get_logger()


@dataclass(slots=True)
class _Batch:
    """Finished calls and their rows."""

    messages: list[Finished] = field(default_factory=list)
    tables: list[pa.Table] = field(default_factory=list)
    rows: int = 0


class RowCommits:
    """Collects rows and commits them; one thread uses it.

    Args:
        succeeded: notes in the ledger that a call succeeded.
    """

    def __init__(self, ledger: Ledger, results: Results, succeeded: Callable[[sa.Connection, Finished], None]) -> None:
        self._ledger, self._results, self._succeeded = ledger, results, succeeded
        self._batch = _Batch()
        self._prepared: tuple[int, list[tuple[Finished, pa.Table]]] | None = None  # the batch whose commit has started
        self._last = 0.0
        self.trouble: str | None = None
        """Why rows cannot be written, while they cannot."""

    @property
    def waiting(self) -> bool:
        """Whether rows wait."""
        return bool(self._batch.messages) or self._prepared is not None

    @property
    def full(self) -> bool:
        """Whether so many rows wait that no new call should run: the table is too slow, or cannot be written."""
        return self._batch.rows >= ROWS_KEPT

    def calls(self) -> list[int]:
        """The calls whose rows the next commit writes."""
        if self._prepared is not None:
            return [message.call for message, _ in self._prepared[1]]
        return [message.call for message in self._batch.messages]

    def add(self, message: Finished, rows: pa.Table) -> None:
        """Take the rows of a call."""
        self._batch.messages.append(message)
        self._batch.tables.append(rows)
        self._batch.rows += rows.num_rows

    def misfit(self, rows: pa.Schema) -> str | None:
        """Why such rows cannot join the results table; None also if it cannot be read, which the commit reports."""
        before = [] if self._prepared is None else [table for _, table in self._prepared[1]]
        waiting = {column.name: column.type for table in (*before, *self._batch.tables) for column in table.schema}
        for column in rows:
            if (kind := waiting.get(column.name, column.type)) != column.type:
                return f"the column {column.name!r} is {column.type} here and {kind} in rows that came just before"
        try:
            return self._results.misfit(rows)
        except (OSError, DeltaError):
            return None

    def due(self, *, idle: bool) -> bool:
        """Whether it is time for a commit; ``idle``: no running call can add rows to the batch."""
        since = time.monotonic() - self._last
        if self._prepared is not None:
            return since >= 0
        return bool(self._batch.messages) and (since >= COMMIT_EVERY_S or self.full or (idle and since >= 0))

    def commit(self) -> None:
        """Commit what waits; when the table cannot be written, keep it and try again later with the same number."""
        if self._prepared is None:
            self._prepared = self._prepare()
        number, wanted = self._prepared
        try:
            if wanted:
                self._results.append(number, [table for _, table in wanted])
        except (OSError, DeltaError) as error:
            # Nothing is lost: the rows stay here, and if the service dies the calls run again.
            self._last = time.monotonic() + COMMIT_PAUSE_S
            self.trouble = f"rows cannot be written to the results table: {error}"
            log.error("commit failed", batch=number, error=str(error))
            return
        if wanted:
            with self._ledger.write() as connection:
                for message, _ in wanted:
                    self._succeeded(connection, message)
        self._prepared, self.trouble = None, None
        self._last = time.monotonic()

    def forget(self) -> None:
        """Drop the waiting rows; recovery runs their calls again, or finds the rows in the table."""
        self._batch, self._prepared, self.trouble = _Batch(), None, None

    def _prepare(self) -> tuple[int, list[tuple[Finished, pa.Table]]]:
        """Give the waiting rows a batch number, and note their calls in the ledger."""
        with self._ledger.write() as connection:
            number, held = next_batch(connection, [message.call for message in self._batch.messages])
        pairs = zip(self._batch.messages, self._batch.tables, strict=True)
        wanted = [(message, table) for message, table in pairs if message.call in held]
        self._batch = _Batch()
        return number, wanted
