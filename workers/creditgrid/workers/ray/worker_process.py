"""Where a call runs, and what can be said of it when its process dies without a word."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from creditgrid.workers.provenance import host

LAST_WORDS = 20_000
"""Characters of a dead process's log that are kept as its traceback."""
_CAUSE = re.compile(r"Fatal Python error: .*|\*\*\* (SIG[A-Z]+) received")


@dataclass(frozen=True, slots=True)
class Place:
    """The process of a call; ``log`` is the file on its host that takes what it writes to standard error.

    ``since`` is the length of that file when the call began: what stands before is of other calls.
    """

    host: str
    node: str
    pid: int
    log: str
    since: int = 0


def here(node: str) -> Place:
    """This process, on a node of that id."""
    log = Path("/proc/self/fd/2")
    if not log.exists():
        return Place(host(), node, os.getpid(), "")
    return Place(host(), node, os.getpid(), str(log.readlink()), os.fstat(2).st_size)


def end_with_parent() -> None:
    """Let this process be killed when its parent dies: what is left of a lost node must not go on computing."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        if ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def title_of(process: psutil.Process) -> str:
    """What the process calls itself, which for a Ray worker is the call that it is at."""
    return " ".join(process.cmdline()).strip()


def end_process(pid: int, title: str) -> bool:
    """Kill a process of this machine, if it is there and still has the title; it may go on to other work any time.

    Returns:
        whether it was.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if title_of(process) == title:
            process.kill()
            return True
    return False


def obituary(place: Place | None) -> tuple[str, str]:
    """One line that says which process died and of what, as far as is known, and its last words."""
    if place is None:
        return "its worker process died as it began", ""
    words = ""
    log = Path(place.log)
    if place.host == host() and log.is_file():
        with log.open("rb") as file:
            file.seek(max(place.since, log.stat().st_size - LAST_WORDS))
            words = file.read(LAST_WORDS).decode(errors="replace")
    found = _CAUSE.search(words)
    cause = found.group(1) or found.group(0) if found else "killed, or ended by what the task calls"
    return f"its worker process {place.pid} on {place.host} died: {cause}", words
