"""A process for work that may execute brought code: a fork of a server that has imported what is needed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from creditgrid.service.planning.confinement import confine, time_limit

CONTEXT = multiprocessing.get_context("forkserver")
END_S = 1.0
"""Seconds until a process that has closed its connection has ended."""


@dataclass(frozen=True)
class Inside:
    """What the process has: the connection for its answers, where to write how it ends, and an empty folder."""

    answers: Connection
    trace: Connection
    folder: Path

    def confine(self) -> None:
        """Limit this process, for good."""
        confine(self.folder, self.trace.fileno())

    def time_limit(self, seconds: float, doing: str) -> contextlib.AbstractContextManager[None]:
        """Limit the time of a block, which has to do this to the code."""
        return time_limit(seconds, self.trace.fileno(), doing)


@dataclass(frozen=True)
class Outside:
    """What the service has of the process."""

    process: ForkServerProcess
    answers: Connection
    trace: Connection

    def end(self) -> tuple[str, int | None]:
        """What it wrote of its end, empty if it was not confined; and its exit status, None if it has not ended."""
        self.process.join(END_S)
        text = b""
        while self.trace.poll() and (part := os.read(self.trace.fileno(), 2**16)):
            text += part
        return text.decode(errors="replace"), self.process.exitcode

    def kill(self) -> None:
        """Kill it, and all that it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended, or leads no group
            if self.process.pid is not None:
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()


@contextlib.contextmanager
def confined_process(work: Callable[..., None], *arguments: Any) -> Iterator[Outside]:
    """A process that runs ``work(inside, *arguments)``; it is killed at the end of the block."""
    answers, theirs = CONTEXT.Pipe()
    trace, written = CONTEXT.Pipe(duplex=False)
    with answers, trace, tempfile.TemporaryDirectory(prefix="creditgrid-", ignore_cleanup_errors=True) as folder:
        inside = Inside(theirs, written, Path(folder))
        process = CONTEXT.Process(target=work, args=(inside, *arguments), daemon=True)
        found = Outside(process, answers, trace)
        with theirs, written:
            process.start()
        try:
            yield found
        finally:
            found.kill()
