"""The processes that run queries: used again, and replaced when they end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from creditgrid.core.errors import QueryError

OVERHEAD = 768 * 10**6
"""Bytes that a query's process may take beside DuckDB's own limit: threads, Parquet buffers, the answer."""
QUIET_S = 5.0
"""Seconds after its start in which a service without queries starts no process for them."""
PAUSE_S = 0.5
"""Seconds between two starts."""


@dataclass(frozen=True, slots=True)
class Child:
    """A process that runs ``sql_process``, and the connection to it."""

    process: subprocess.Popen[bytes]
    connection: Connection

    @property
    def ready(self) -> bool:
        """Whether it waits for a request, or has ended."""
        return bool(self.connection.poll())

    def end(self) -> int:
        """Kill the process if it still runs; returns its exit status."""
        self.process.kill()
        self.connection.close()
        return self.process.wait()


class Pool:
    """Any thread may use it. A query's process may take ``memory`` and ``OVERHEAD`` bytes.

    A process takes a second or more to start. After ``keep`` there are ``size`` processes, so that a short query does
    not wait for one.
    """

    def __init__(self, memory: int, size: int) -> None:
        self._memory, self._size = memory, size
        self._changed = threading.Condition()
        self._idle: list[Child] = []
        self._busy: list[Child] = []
        self._used = self.closed = False
        self._keeper = threading.Thread(target=self._keep, name="query processes", daemon=True)

    def keep(self) -> None:
        """Start the processes, one by one, with the first query or shortly after now, and whatever ends again."""
        self._keeper.start()

    def take(self) -> Child:
        """A process that is not busy; it may still be starting.

        Raises:
            QueryError: the service is stopping.
        """
        with self._changed:
            if self.closed:
                raise stopping()
            self._used = True
            self._idle.sort(key=lambda child: not child.ready)
            child = self._idle.pop(0) if self._idle else self._start()
            if child.process.poll() is not None:  # it ended while nobody used it
                child.end()
                child = self._start()
            self._busy.append(child)
            self._changed.notify()
            return child

    def give_back(self, child: Child) -> None:
        """The process is not busy any more."""
        with self._changed:
            self._busy.remove(child)
            if not self.closed:
                self._idle.append(child)
                return
        child.end()

    def discard(self, child: Child) -> int:
        """End the process; returns its exit status."""
        status = child.end()
        with self._changed:
            self._busy.remove(child)
            self._changed.notify()
        return status

    def close(self) -> None:
        """End the processes; running queries fail."""
        with self._changed:
            self.closed = True
            self._changed.notify()
            for child in self._busy:
                child.process.kill()  # the thread that waits for it closes the connection
            idle, self._idle = self._idle, []
        if self._keeper.ident is not None:
            self._keeper.join()
        for child in idle:
            child.end()

    def _keep(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._used or self.closed, QUIET_S)
            while not self.closed:
                if len(self._idle) + len(self._busy) < self._size:
                    self._idle.append(self._start())
                    self._changed.wait_for(lambda: self.closed, PAUSE_S)  # one by one: each takes a core for a moment
                else:
                    self._changed.wait()

    def _start(self) -> Child:
        # The child does not see the token and the database's password.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CREDITGRID_")}
        ours, theirs = Pipe()
        with theirs:
            arguments = [str(self._memory + OVERHEAD), str(theirs.fileno())]
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "creditgrid.service.reading.sql_process", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a library prints does not mix with what the service prints
                env=environment,
                pass_fds=[theirs.fileno()],
            )
        return Child(process, ours)


def stopping() -> QueryError:
    """The error of a query in a service that stops."""
    return QueryError("the service is stopping")
