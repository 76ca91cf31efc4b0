"""The ledger: one SQL database with everything about sweeps except their artifacts and rows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from creditgrid.core.errors import CreditGridError
from creditgrid.service.ledger import engine, schema, tables
from creditgrid.service.ledger.batches import last_batch, last_written_batch
from creditgrid.service.ledger.changes import Changes, collect_events
from creditgrid.service.ledger.integrity import check_file, check_pages, damaged
from creditgrid.service.ledger.lock import PostgresqlLock, SqliteLock
from creditgrid.service.ledger.turns import Turns


class Ledger:
    """The database. Any thread may read; one thread writes at a time.

    Where the database cannot be used for a while, transactions raise ``sa.exc.OperationalError``. The next transaction
    connects again.
    """

    def __init__(self, url: str | sa.URL, *, lock: bool = False) -> None:
        """Open the ledger at ``url``; create it where there is none.

        With ``lock``, no other process can schedule over the ledger until this one closes it or dies, and an older
        ledger is migrated. Without, an older ledger is refused, because a service may be using it.

        Raises:
            ValueError: the URL names no database that can hold a ledger.
            ConflictError: another process has the lock.
            LedgerDamaged: the ledger is damaged.
            CreditGridError: the database cannot be used, or the ledger has the schema of another version.
        """
        self._engine = engine.create_engine(engine.parse_url(url))
        self._turn = Turns()
        self.changes = Changes()
        self._lock: SqliteLock | PostgresqlLock | None = None
        self.name = engine.display_name(self._engine)
        """The database, without a password."""
        with self._closed_on_error():
            self._open(lock=lock)

    def close(self) -> None:
        """Close the connections and release the lock."""
        if self._lock is not None:
            self._lock.release()
        self._engine.dispose()

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[sa.Connection]:
        """A transaction: it is written whole or not at all. The writers of all processes run one after the other.

        The writers of this process run in the order in which they came. With ``durable`` false, a power cut may undo
        the transaction; the next durable one brings it to the disk.

        Raises:
            OperationalError: the database cannot be written now.
            ConflictError: this process had the lock, and another process has it now.
        """
        events: dict[str, bool] = {}
        try:
            with self._turn, engine.write_transaction(self._engine, durable=durable) as connection:
                if self._lock is not None:
                    self._lock.check(connection)
                events = collect_events(connection)
                yield connection
        finally:  # also after an error: nobody knows whether a connection that was lost in a commit has committed
            self.changes.ended(events)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that sees one snapshot of the ledger.

        Raises:
            OperationalError: the database cannot be read now.
        """
        with engine.read_transaction(self._engine) as connection:
            yield connection

    @property
    def awaited(self) -> bool:
        """Whether another writer of this process waits."""
        return self._turn.awaited

    def identity(self) -> str:
        """The name that the ledger got when it was created. It marks the ledger's commits in the results table."""
        with self.read() as connection:
            return str(_meta(connection, "identity"))

    def batches(self) -> tuple[int, int]:
        """The last results batch that was started, and the last that is noted as written; 0 for none."""
        with self.read() as connection:
            return last_batch(connection), last_written_batch(connection)

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        """Close the ledger on an error, and raise an error that a user can act on."""
        try:
            yield
        except sa.exc.DBAPIError as error:
            self.close()
            if engine.is_corruption(error):
                raise damaged(self.name, engine.short_message(error)) from error
            raise CreditGridError(f"the ledger {self.name} cannot be used: {engine.short_message(error)}") from error
        except OSError as error:
            self.close()
            raise CreditGridError(f"the ledger {self.name} cannot be used: {error.strerror or error}") from error
        except CreditGridError:
            self.close()
            raise

    def _open(self, *, lock: bool) -> None:
        file = engine.sqlite_file(self._engine)
        if file is not None:
            check_file(file)
        with self.read() as connection:
            check_pages(connection)
            found = schema.revision(connection)
        if found is None:
            self._create()
        if lock:
            self._lock = SqliteLock(file) if file else PostgresqlLock(self._engine)
            with self.write() as connection:
                schema.upgrade(connection)
        with self.read() as connection:
            schema.check(connection)
            if _meta(connection, "identity") is None:
                raise damaged(self.name, "its table 'meta' has no row 'identity'")

    def _create(self) -> None:
        with self.write() as connection:
            if schema.revision(connection) is None:  # otherwise another process was faster
                schema.upgrade(connection)
                connection.execute(tables.meta.insert().values(name="identity", value=f"{time.time_ns():x}"))


def _meta(connection: sa.Connection, name: str) -> str | None:
    return connection.scalar(sa.select(tables.meta.c.value).where(tables.meta.c.name == name))
