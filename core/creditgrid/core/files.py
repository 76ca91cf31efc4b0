"""Files that are complete on the disk or absent, also after a crash."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def sync(*paths: Path) -> None:
    """Put files, and the entries of directories, on the disk, in the order given."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def synced_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which is on the disk when the block ends."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def atomic_file(path: Path, temporary: str | None = None) -> Iterator[BinaryIO]:
    """A file to write, which replaces ``path`` when the block ends and is removed when the block raises.

    Until then its name is ``temporary``, in the directory of ``path``. A device or a pipe is written to directly.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    part = path.with_name(temporary or f".{path.name}.{os.getpid()}.part")
    try:
        with synced_file(part) as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
