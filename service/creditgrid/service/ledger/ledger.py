"""The ledger: one SQL database that holds everything about sweeps but their artifacts and rows.

``db`` has its tables and statements; ``scheduler``, ``control`` and what they stand on decide on states.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from creditgrid.core.errors import CreditGridError
from creditgrid.core.states import State
from creditgrid.service.ledger import engine, tables
from creditgrid.service.ledger.integrity import check_file, check_pages, check_tables, damaged
from creditgrid.service.ledger.lock import FileLock, Lock, ServerLock


class Ledger:
    """The database; reads may come from any thread, writes are one at a time.

    Whatever keeps it from being used for a while is told as ``sa.exc.OperationalError`` (see ``engine.trouble``), and
    the next transaction finds its way again.
    """

    def __init__(self, url: str | sa.URL) -> None:
        """Open the ledger at ``url``, and make it where there is none.

        Raises:
            ValueError: the URL names no database that a ledger can live in.
            LedgerDamaged: it is there and broken.
            CreditGridError: it cannot be reached, or another version made it.
        """
        self._engine = engine.create_engine(engine.parse_url(url))
        self._writing = threading.RLock()
        self._lock: Lock | None = None
        self.name = engine.display_name(self._engine)
        """Where it is, without a password."""
        with self._or_closed():
            self._open()

    def close(self) -> None:
        """Give the connections back, and the right to schedule."""
        if self._lock is not None:
            self._lock.release()
        self._engine.dispose()

    def lock(self) -> None:
        """Be the only one that schedules over this ledger until it is closed or the process dies.

        Raises:
            ConflictError: another process is, which is named.
            CreditGridError: that cannot be found out.
        """
        with self._or_closed():
            file = engine.sqlite_file(self._engine)
            if file is not None:
                self._lock = FileLock(file)
                return
            lock = ServerLock(self._engine, self.name, tables.meta)
            with self.write() as connection:
                lock.sign(connection)
            self._lock = lock

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction; everything in it happens or nothing does. Writers of all processes take turns.

        Raises:
            OperationalError: the database cannot be written now.
            ConflictError: this process has scheduled over the ledger, and another one has taken over.
        """
        with self._writing, engine.write_transaction(self._engine) as connection:
            if self._lock is not None:
                self._lock.check(connection)
            yield connection

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A consistent view for reading: nothing changes in it, whatever is written meanwhile.

        Raises:
            OperationalError: the database cannot be read now.
        """
        with engine.read_transaction(self._engine) as connection:
            yield connection

    def identity(self) -> str:
        """A name of this ledger, fixed when it was made: what marks its commits in the results table."""
        with self.read() as connection:
            return str(_meta(connection, "identity"))

    def batches(self) -> tuple[int, int]:
        """The last results batch that was begun, and the last that is noted as written; 0 for none."""
        with self.read() as connection:
            written = sa.select(sa.func.max(tables.calls.c.batch)).where(tables.calls.c.state == State.SUCCEEDED)
            return int(_meta(connection, "batch") or 0), int(connection.scalar(written) or 0)

    @contextmanager
    def _or_closed(self) -> Iterator[None]:
        """What keeps the ledger from being opened is told to a person, and the ledger is closed."""
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

    def _open(self) -> None:
        file = engine.sqlite_file(self._engine)
        if file is not None:
            check_file(file)
        with self.read() as connection:
            check_pages(connection)
            new = not set(tables.metadata.tables) & set(sa.inspect(connection).get_table_names())
        if new:
            self._make()
        with self.read() as connection:
            found = _meta(connection, "schema") if sa.inspect(connection).has_table(tables.meta.name) else None
            if found not in (None, str(tables.SCHEMA_VERSION)):
                raise CreditGridError(
                    f"the ledger {self.name} has schema {found} and this version works with {tables.SCHEMA_VERSION}: "
                    "use the version that made it, or another data directory"
                )
            check_tables(connection, tables.metadata)
            if found is None or _meta(connection, "identity") is None:
                raise damaged(self.name, f"its table {tables.meta.name!r} lacks what every ledger has")

    def _make(self) -> None:
        with self.write() as connection:
            tables.metadata.create_all(connection)
            if _meta(connection, "schema") is None:  # else another process was faster
                connection.execute(tables.meta.insert().values(name="schema", value=str(tables.SCHEMA_VERSION)))
                connection.execute(tables.meta.insert().values(name="identity", value=f"{time.time_ns():x}"))


def _meta(connection: sa.Connection, name: str) -> str | None:
    return connection.scalar(sa.select(tables.meta.c.value).where(tables.meta.c.name == name))
