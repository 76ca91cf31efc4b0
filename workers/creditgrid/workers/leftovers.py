"""Names for what is being written, which tell who writes it: what a dead writer left is known as such and can go.

A writer on this machine is dead when its process is. Of one on another machine only the age of what it left is seen, by
the file system's clock; something from the future, after a clock was set back, is as good as new.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from pathlib import Path

GRACE_S = 3600.0
"""No write takes longer than this: what is older was left behind, wherever its writer was."""


def temporary(prefix: str, name: str) -> str:
    """A new file name, with the marks of this process."""
    return "@".join((f"{prefix}{name}", *_machine(), str(os.getpid()), uuid.uuid4().hex))


def abandoned(path: Path, grace_s: float = GRACE_S) -> bool:
    """Whether nobody writes to the file or directory any more that was named by ``temporary``, or is gone."""
    try:
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return True
    return age > grace_s or _writer_is_dead(path.name)


def _writer_is_dead(name: str) -> bool:
    _, *machine, pid, _ = ["", "", "", *name.split("@")][-5:]
    if tuple(machine) != _machine() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _machine() -> tuple[str, str]:
    """This host and, where there are such, its space of process ids: containers may share a host's name."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not Linux
        space = ""
    return socket.gethostname(), "".join(filter(str.isdigit, space))
