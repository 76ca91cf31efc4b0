"""A lock file that holds the process id of its owner. The system releases the lock when the owner ends."""

from __future__ import annotations

import os
from pathlib import Path

import filelock


class AlreadyLocked(Exception):
    """Another process holds the lock; ``owner`` is its process id, or ``unknown``."""

    def __init__(self, owner: str) -> None:
        super().__init__(owner)
        self.owner = owner


def acquire(path: Path) -> filelock.BaseFileLock:
    """Lock ``path`` for this process, without waiting; the file stays when the lock is released.

    Raises:
        AlreadyLocked: another process holds the lock.
        OSError: the file cannot be made or locked.
    """
    lock = filelock.FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise AlreadyLocked(path.read_text().strip() or "unknown") from error
    path.write_text(f"{os.getpid()}\n")
    return lock
