"""Limits of a process that runs code which nobody has checked yet: memory, time, and no processes of its own."""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

MEMORY = 2 * 2**30
"""Bytes of data that code may take while it is checked, torch included."""
_STARTS = (
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "pty.spawn",
    "subprocess.Popen",
)
"""Audit events of what starts a process or becomes another program."""


class Overtime(BaseException):
    """Code took longer than it may. It is no Exception, so that the code does not swallow it."""


class ProcessRefused(PermissionError):
    """Code that is checked wanted to start a process."""


def confine(memory: int = MEMORY) -> None:
    """Limit this process for the rest of its life; import what it needs before, such as torch."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(_refuse_processes)


def _refuse_processes(event: str, _: tuple[Any, ...]) -> None:
    if event in _STARTS:
        raise ProcessRefused(f"{event} would start a process, which code may not do while it is checked")


@contextmanager
def at_most(seconds: float) -> Iterator[Callable[[], None]]:
    """Raises `Overtime` in the block after some seconds, counted again after each call of what it yields.

    For the main thread. A call into C is not interrupted.
    """

    def restart() -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def stop(_: int, __: FrameType | None) -> None:
        restart()  # for code that goes on after it
        raise Overtime(f"took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    restart()
    try:
        yield restart
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
