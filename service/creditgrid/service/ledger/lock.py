"""One scheduler a ledger: what a service holds from its start to its end, however it ends.

Two schedulers over one ledger would each run every call. The data directory is locked too (see ``commands``); this lock
is for a database that two data directories name.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import time
import weakref
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa

from creditgrid.core.errors import ConflictError

SCHEDULERS_PLACE = 0x63726564_73636864
"""The advisory lock of the one that schedules (the letters of "credschd")."""
PATIENCE_S = 3.0
"""A server may take a moment to see that the one before has died."""
LOOK_EVERY_S = 10.0


class Lock(Protocol):
    """The right to schedule."""

    def check(self, connection: sa.Connection) -> None:
        """In a writer's transaction: the right is still ours.

        Raises:
            ConflictError: another service has it.
        """

    def release(self) -> None:
        """Give it back; a process that dies gives it back too."""


class FileLock:
    """A lock beside a SQLite file, which the system takes back when the process ends."""

    def __init__(self, database: Path) -> None:
        # Not the database itself: SQLite's own locks on it would be lost when another descriptor of it is closed.
        file = os.open(database.with_name(f"{database.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._close = weakref.finalize(self, os.close, file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(file, 100, 0).decode(errors="replace").strip() or "unknown"
            self._close()
            raise _in_use(str(database), f"process id {owner}") from error
        os.truncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)

    def check(self, connection: sa.Connection) -> None:
        """It cannot be lost."""

    def release(self) -> None:
        """Give it back."""
        self._close()


class ServerLock:
    """A PostgreSQL advisory lock, held by a connection of its own, and a name in the ledger, held against all comers.

    The advisory lock is gone with its connection, so also when the server is started anew: a second service could then
    begin while this one still runs. That is why whoever takes the lock writes its name into the ledger, and each of its
    writing transactions reads it again (``check``): the one that was overtaken writes nothing any more and learns why.
    The connection is looked at every ``LOOK_EVERY_S`` seconds of writing, and the lock taken again when it was lost.
    """

    def __init__(self, engine: sa.Engine, name: str, meta: sa.Table) -> None:
        self._engine, self._database, self._meta = engine, name, meta
        self._name = f"process id {os.getpid()} on {socket.gethostname()} ({secrets.token_hex(8)})"
        self._connection = self._take()
        self._looked = time.monotonic()

    def sign(self, connection: sa.Connection) -> None:
        """Write the name into the ledger."""
        connection.execute(self._meta.delete().where(self._meta.c.name == "scheduler"))
        connection.execute(self._meta.insert().values(name="scheduler", value=self._name))

    def check(self, connection: sa.Connection) -> None:
        """In a writer's transaction: the name is still ours, and now and then: so is the advisory lock.

        Raises:
            ConflictError: another service has taken over.
        """
        signed = connection.scalar(sa.select(self._meta.c.value).where(self._meta.c.name == "scheduler"))
        if signed != self._name:
            raise ConflictError(
                f"the service with {signed} has taken over the ledger {self._database} while the lock of this one was "
                "lost with its connection: stop one of both"
            )
        if time.monotonic() - self._looked >= LOOK_EVERY_S:
            self._look()

    def release(self) -> None:
        """Give it back."""
        self._connection.close()

    def _look(self) -> None:
        try:
            self._connection.exec_driver_sql("SELECT 1")
        except sa.exc.DBAPIError:
            self._connection.close()
            self._connection = self._take()
        self._looked = time.monotonic()

    def _take(self) -> sa.Connection:
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()  # the pool would hand it on, or count it
        until = time.monotonic() + PATIENCE_S
        while not connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({SCHEDULERS_PLACE})").scalar():
            if time.monotonic() >= until:
                signed = connection.scalar(sa.select(self._meta.c.value).where(self._meta.c.name == "scheduler"))
                connection.close()
                raise _in_use(self._database, str(signed or "an unknown process id"))
            time.sleep(0.1)
        return connection


def _in_use(name: str, owner: str) -> ConflictError:
    return ConflictError(
        f"the ledger {name} is in use by the service with {owner}: stop that one, or give this one another "
        "CREDITGRID_DATABASE_URL (a service has a ledger and a data directory of its own)"
    )
