"""Rows of finished calls on their way into the results table, about once a second, each exactly once.

A commit has three steps, and each can be the last before a crash:

1. the ledger notes which calls the next batch holds,
2. the batch is appended to the results table, marked with its number,
3. the ledger notes the calls and their cells as succeeded.

After a restart a call with a batch number is succeeded if the table holds that batch, and runs again if not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa
import sqlalchemy as sa
import structlog
from deltalake.exceptions import DeltaError

from creditgrid.core.states import State
from creditgrid.service.ledger import tables
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.results.table import Results
from creditgrid.workers.runner import Finished

COMMIT_EVERY_S = 1.0
COMMIT_PAUSE_S = 4.0
"""Further seconds before the next try after a commit that failed."""
ROWS_KEPT = 200_000
"""Rows waiting for their commit; above it the batch is committed at once."""

log = structlog.get_logger()


@dataclass(slots=True)
class _Batch:
    """Finished calls and their rows."""

    messages: list[Finished] = field(default_factory=list)
    tables: list[pa.Table] = field(default_factory=list)
    rows: int = 0


class Commits:
    """Collects rows and commits them; ``succeeded`` notes the end of a call in the ledger. One thread uses it."""

    def __init__(self, ledger: Ledger, results: Results, succeeded: Callable[[sa.Connection, Finished], None]) -> None:
        self._ledger, self._results, self._succeeded = ledger, results, succeeded
        self._batch = _Batch()
        self._prepared: tuple[int, list[tuple[Finished, pa.Table]]] | None = None  # a batch whose commit has begun
        self._last = 0.0
        self.trouble: str | None = None
        """Why rows cannot be written, while they cannot."""

    @property
    def waiting(self) -> bool:
        """Whether rows wait."""
        return bool(self._batch.messages) or self._prepared is not None

    @property
    def full(self) -> bool:
        """Whether so many rows wait that no more should be made: the table cannot be written fast enough, or at all."""
        return self._batch.rows >= ROWS_KEPT

    def add(self, message: Finished, rows: pa.Table) -> None:
        """Take the rows of a call."""
        self._batch.messages.append(message)
        self._batch.tables.append(rows)
        self._batch.rows += rows.num_rows

    def misfit(self, rows: pa.Schema) -> str | None:
        """Why such rows cannot join the results table, if it can be read; if not, the commit says so."""
        waiting = {column.name: column.type for table in self._batch.tables for column in table.schema}
        for column in rows:
            if (kind := waiting.get(column.name, column.type)) != column.type:
                return f"the column {column.name!r} is {column.type} here and {kind} in rows that came just before"
        try:
            return self._results.misfit(rows)
        except (OSError, DeltaError):
            return None

    def due(self, *, idle: bool) -> bool:
        """Whether it is time for a commit; ``idle``: no further rows are being made that could join."""
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
        """Drop what waits: its calls run again, or are found in the table."""
        self._batch, self._prepared, self.trouble = _Batch(), None, None

    def _prepare(self) -> tuple[int, list[tuple[Finished, pa.Table]]]:
        """Number the waiting rows and note in the ledger which calls they end."""
        with self._ledger.write() as connection:
            number = (
                int(connection.scalar(sa.select(tables.meta.c.value).where(tables.meta.c.name == "batch")) or 0) + 1
            )
            connection.execute(tables.meta.delete().where(tables.meta.c.name == "batch"))
            connection.execute(tables.meta.insert().values(name="batch", value=str(number)))
            wanted = []
            for message, table in zip(self._batch.messages, self._batch.tables, strict=True):
                noted = connection.execute(
                    tables.calls.update()
                    .where(tables.calls.c.id == message.call, tables.calls.c.state.in_((State.QUEUED, State.RUNNING)))
                    .values(batch=number)
                )
                if noted.rowcount == 1:  # a call that was cancelled while its rows waited brings none
                    wanted.append((message, table))
        self._batch = _Batch()
        return number, wanted
