"""The lock of a ledger: one service schedules over it, and only this one migrates it.

Two services over one ledger would each run every call. ``server`` locks the data directory as well. The ledger needs
its own lock, because two data directories may name one database.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from pathlib import Path

import sqlalchemy as sa

from creditgrid.core.errors import ConflictError
from creditgrid.service import pid_lock
from creditgrid.service.ledger import engine
from creditgrid.service.ledger.tables import meta

SCHEDULER_LOCK = 0x63726564_73636864
"""The advisory lock of the service that schedules (the letters of "credschd")."""
ACQUIRE_TIMEOUT_S = 3.0
"""A server may need a moment to notice that the owner before has died."""
CHECK_INTERVAL_S = 10.0
_OWNER = sa.select(meta.c.value).where(meta.c.name == "scheduler")


class SqliteLock:
    """A lock on a file beside the SQLite file."""

    def __init__(self, database: Path) -> None:
        # Not on the database itself: SQLite loses its own locks when another descriptor of the file is closed.
        path = database.with_name(f"{database.name}.lock")
        try:
            self._lock = pid_lock.acquire(path)
        except pid_lock.AlreadyLocked as error:
            raise _in_use(str(database), f"process id {error.owner}") from error

    def check(self, connection: sa.Connection) -> None:
        """The system cannot take the lock from a process that lives."""

    def release(self) -> None:
        """Release the lock. The end of the process releases it too."""
        self._lock.release()


class PostgresqlLock:
    """An advisory lock that a connection of its own holds, and the owner's name in the ledger.

    The server releases an advisory lock when its connection is lost, also at a restart of the server. A second service
    could then start while the first still runs. Therefore the owner writes its name into the ledger, and ``check``
    reads it in each writing transaction. A service that was replaced writes nothing more and reports why. Every
    ``CHECK_INTERVAL_S`` seconds ``check`` also tests the connection, and takes a lost lock again.
    """

    def __init__(self, database: sa.Engine) -> None:
        self._engine, self._database = database, engine.display_name(database)
        self._name = f"process id {os.getpid()} on {socket.gethostname()} ({secrets.token_hex(8)})"
        self._connection = self._acquire()
        self._checked = time.monotonic()
        try:
            with engine.write_transaction(database) as connection:
                connection.execute(meta.delete().where(meta.c.name == "scheduler"))
                connection.execute(meta.insert().values(name="scheduler", value=self._name))
        except BaseException:
            self.release()
            raise

    def check(self, connection: sa.Connection) -> None:
        """In a writing transaction: the owner's name is still ours, and from time to time: so is the advisory lock.

        Raises:
            ConflictError: another service has replaced this one.
        """
        owner = connection.scalar(_OWNER)
        if owner != self._name:
            raise ConflictError(
                f"the service with {owner} has taken over the ledger {self._database}, because this service lost its "
                "connection and with it the lock: stop one of the two"
            )
        if time.monotonic() - self._checked >= CHECK_INTERVAL_S:
            self._check_connection()

    def release(self) -> None:
        """Release the lock. The end of the process releases it too."""
        self._connection.close()

    def _check_connection(self) -> None:
        try:
            self._connection.exec_driver_sql("SELECT 1")
        except sa.exc.DBAPIError:
            self._connection.close()
            self._connection = self._acquire()
        self._checked = time.monotonic()

    def _acquire(self) -> sa.Connection:
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()  # the pool must neither reuse nor count it
        deadline = time.monotonic() + ACQUIRE_TIMEOUT_S
        while not connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({SCHEDULER_LOCK})").scalar():
            if time.monotonic() >= deadline:
                owner = connection.scalar(_OWNER)
                connection.close()
                raise _in_use(self._database, str(owner or "an unknown process id"))
            time.sleep(0.1)
        return connection


def _in_use(database: str, owner: str) -> ConflictError:
    return ConflictError(
        f"the ledger {database} is in use by the service with {owner}: stop that service, or give this one another "
        "CREDITGRID_DATABASE_URL (each service has its own ledger and data directory)"
    )
