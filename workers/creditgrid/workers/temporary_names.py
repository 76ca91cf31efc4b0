"""Names for files and directories that are being written. They name the writer, so what a dead one left can be removed.

A writer on this machine is dead when its process is. Of a writer on another machine, or before this machine's last
start, only the age of its files is known. A file from the future, after a clock was set back, counts as new.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from functools import cache
from pathlib import Path

import psutil

GRACE_S = 3600.0
"""No write takes longer: an older file was abandoned, wherever its writer was."""


def temporary_name(prefix: str, name: str) -> str:
    """A new file name that identifies this process."""
    return "@".join((f"{prefix}{name}", *_machine(), str(os.getpid()), uuid.uuid4().hex))


def is_abandoned(path: Path, grace_s: float = GRACE_S) -> bool:
    """Whether the writer of a file or directory named by ``temporary_name`` is dead, or the file is gone."""
    _, *machine, pid, _ = ["", "", "", *path.name.split("@")][-5:]
    if tuple(machine) == _machine() and pid.isdecimal():
        return not psutil.pid_exists(int(pid))
    try:
        return time.time() - path.stat().st_mtime > grace_s
    except FileNotFoundError:
        return True


@cache
def _machine() -> tuple[str, str]:
    """The host, and an id of its last start and of the container: elsewhere the same process id is another process."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
        start = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:  # not Linux
        space, start = "", str(int(psutil.boot_time()))
    return socket.gethostname(), "-".join(("".join(filter(str.isdigit, space)), "".join(filter(str.isalnum, start))))
