"""The operating system's process that runs a call: where it is, how it is killed, and how it died."""

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

LOG_TAIL = 20_000
"""Characters of a dead process's log that are kept as its traceback."""
_CAUSE = re.compile(r"Fatal Python error: .*|\*\*\* (SIG[A-Z]+) received")


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """The process of a call; ``log`` is the file on its host that takes its standard error.

    ``log_start`` is the length of that file when the call started: what comes before belongs to other calls.
    """

    host: str
    node: str
    pid: int
    log: str
    log_start: int = 0


def this_process(node: str) -> WorkerProcess:
    """This process, on the Ray node of that id."""
    log = Path("/proc/self/fd/2")
    if not log.exists():
        return WorkerProcess(host(), node, os.getpid(), "")
    return WorkerProcess(host(), node, os.getpid(), str(log.readlink()), os.fstat(2).st_size)


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent dies: a worker of a lost node must not compute on."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        if ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def process_title(process: psutil.Process) -> str:
    """The title of the process, which for a Ray worker is the task that it runs."""
    return " ".join(process.cmdline()).strip()


def kill_process(pid: int, title: str) -> bool:
    """Kill a process of this machine if it exists and still has the title; a worker may take other work at any time.

    Returns:
        whether it was killed.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process_title(process) == title:
            process.kill()
            return True
    return False


def describe_death(process: WorkerProcess | None) -> tuple[str, str]:
    """One line that says which process died and of what, as far as that is known, and the end of its log."""
    if process is None:
        return "its worker process died as it started", ""
    tail = ""
    log = Path(process.log)
    if process.host == host() and log.is_file():
        with log.open("rb") as file:
            file.seek(max(process.log_start, log.stat().st_size - LOG_TAIL))
            tail = file.read(LOG_TAIL).decode(errors="replace")
    found = _CAUSE.search(tail)
    cause = found.group(1) or found.group(0) if found else "killed, or ended by what the task calls"
    return f"its worker process {process.pid} on {process.host} died: {cause}", tail
