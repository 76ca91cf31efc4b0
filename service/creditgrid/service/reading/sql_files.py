"""The files of a table under names of their own: DuckDB needs no access to a path of the machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem


class TableFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Opens the files at ``paths`` below ``root`` for reading, as ``TABLE://`` and the path, and nothing else."""

    cachable = False

    def __init__(self, table: str, root: str, paths: Iterable[str]) -> None:
        super().__init__()
        self.protocol = table
        self._files = {f"{table}://{path}": Path(root, path) for path in paths}

    @property
    def names(self) -> list[str]:
        """The names of the files."""
        return list(self._files)

    def open(self, path: str, mode: str = "rb", **_: Any) -> _File:
        """Open a file.

        Raises:
            FileNotFoundError: there is none of this name.
            PermissionError: it is opened for writing.
        """
        if mode != "rb":
            raise PermissionError("the table is read only")
        return _File(self._find(path))

    def exists(self, path: str, **_: Any) -> bool:
        """Whether there is a file of this name."""
        return path in self._files

    def glob(self, path: str, **_: Any) -> list[str]:
        """The file of this name; patterns match nothing."""
        return [path] if path in self._files else []

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """The file's size in bytes."""
        return {"name": path, "size": self._find(path).stat().st_size, "type": "file"}

    def modified(self, path: str) -> datetime:  # noqa: ARG002
        """Always the same: the files of the table never change."""
        return datetime.fromtimestamp(0, UTC)

    def _find(self, path: str) -> Path:
        if path not in self._files:
            raise FileNotFoundError(path)
        return self._files[path]


class _File:
    """A file that several threads may read, each at its own position."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._size = os.fstat(self._descriptor).st_size
        self._here = threading.local()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self._size}[whence]
        self._here.position = start + offset
        return self.tell()

    def tell(self) -> int:
        return getattr(self._here, "position", 0)

    def read(self, length: int = -1) -> bytes:
        data = os.pread(self._descriptor, self._size if length < 0 else length, self.tell())
        self._here.position = self.tell() + len(data)
        return data

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        os.close(self._descriptor)
