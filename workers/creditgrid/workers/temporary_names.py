"""Names for what is being written, which tell who writes it: what a dead writer left is known as such and can go.

A writer on this machine is dead when its process is. Of one elsewhere, or before this machine was started, only the age
of what it left is seen; something from the future, after a clock was set back, is as good as new.
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
"""No write takes longer than this: what is older was left behind, wherever its writer was."""


def temporary_name(prefix: str, name: str) -> str:
    """A new file name, with the marks of this process."""
    return "@".join((f"{prefix}{name}", *_machine(), str(os.getpid()), uuid.uuid4().hex))


def is_abandoned(path: Path, grace_s: float = GRACE_S) -> bool:
    """Whether nobody writes to the file or directory any more that was named by ``temporary_name``, or is gone."""
    _, *machine, pid, _ = ["", "", "", *path.name.split("@")][-5:]
    if tuple(machine) == _machine() and pid.isdecimal():
        return not psutil.pid_exists(int(pid))
    try:
        return time.time() - path.stat().st_mtime > grace_s
    except FileNotFoundError:
        return True


@cache
def _machine() -> tuple[str, str]:
    """This host, and what tells its starts and its containers apart: their process ids have nothing to do with ours."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
        start = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:  # not Linux
        space, start = "", str(int(psutil.boot_time()))
    return socket.gethostname(), "-".join(("".join(filter(str.isdigit, space)), "".join(filter(str.isalnum, start))))
