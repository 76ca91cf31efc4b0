"""The process that runs SQL for ``sql.Sandbox``, one query at a time. Its DuckDB reaches only what it is given.

It is a process of its own because DuckDB alone cannot bound a query: it does not interrupt a single call such as
``levenshtein`` of two long strings, and does not count the memory of intermediate strings. Here the kernel ends a
query that runs too long (an alarm) and refuses memory beyond a limit. The process also encodes the answer, so that the
service only passes bytes on.

``python -m creditgrid.service.reading.sql_process BYTES FD`` may use so many bytes beyond its start, and talks to the
service over the ``multiprocessing.Connection`` with this file descriptor, as ``sql_protocol`` says.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from creditgrid.service.reading.sql_protocol import NO_MEMORY

NICENESS = 5
"""Queries leave the cores to the service, which answers everybody else, and are served before Ray's workers (15)."""


def bound_memory(extra: int) -> None:
    """Let this process take ``extra`` bytes beyond what it has now; the kernel refuses more. On Linux only."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmData:\s+(\d+) kB", status.read_text())
        assert found is not None
        limit = int(found[1]) * 1024 + extra
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


class WithoutPandas:
    """An import hook that finds no pandas: pyarrow.dataset imports it without need, which takes two seconds."""

    def find_spec(self, name: str, *_: object) -> None:
        """See importlib.abc.MetaPathFinder."""
        if name == "pandas":
            raise ModuleNotFoundError("no pandas in this process", name=name)


def main() -> None:
    """Serve the connection that the arguments name, within the memory that they allow."""
    sys.meta_path.insert(0, WithoutPandas())
    os.nice(NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the service, which then ends this process
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the alarm ends this process, whatever it is doing
    allowed, descriptor = (int(argument) for argument in sys.argv[1:])
    from creditgrid.service.reading.sql_execution import serve

    bound_memory(allowed)
    with Connection(descriptor) as connection:
        try:
            serve(connection)
        except MemoryError:
            sys.exit(NO_MEMORY)


if __name__ == "__main__":
    main()
