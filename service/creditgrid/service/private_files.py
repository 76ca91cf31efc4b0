"""Other users of the machine see nothing of a service: its folder is 0700, its files are 0600.

The umask does that for what the service and its children write. What an earlier version or a user made is repaired.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

UMASK = 0o077
OTHERS = 0o077
"""The permissions of group and others."""

log = structlog.get_logger()


@contextmanager
def private_umask() -> Iterator[None]:
    """New files and folders are the user's alone."""
    before = os.umask(UMASK)
    try:
        yield
    finally:
        os.umask(before)


def make_private(directory: Path) -> None:
    """Create the folder if it is missing, and close it and what lies directly in it to other users.

    What lies deeper cannot be reached through a closed folder.

    Raises:
        OSError: the folder cannot be made, or other users can read it and this user may not change that.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    opened = [path for path in (directory, *directory.iterdir()) if close_to_others(path)]
    if opened:
        log.warning(
            "other users could read the data directory; now they cannot", path=str(directory), closed=len(opened)
        )


def close_to_others(path: Path) -> bool:
    """Whether others had access to a file or folder, which is now taken away; links are left alone.

    Raises:
        OSError: the access cannot be taken away.
    """
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode) or not mode & OTHERS:
        return False
    try:
        path.chmod(stat.S_IMODE(mode) & ~OTHERS)
    except PermissionError as error:
        raise PermissionError(
            f"other users can read {path}, and only its owner can change that: chmod go= {path}"
        ) from error
    return True
