"""Brought code: a file or a folder of Python with units in it, which is sent with a sweep.

It is Python text by relative path. The SHA-256 of all of it is its identity: a spec names it, and it is in the key of
every task that uses one of its units. ``brought`` imports it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from creditgrid.core.errors import CodeError
from creditgrid.core.fingerprint import digest
from creditgrid.core.task import Arrays

Files: TypeAlias = Mapping[str, bytes]
"""The content of each file, by its path: relative, with ``/``."""

SUFFIX = ".py"
MAX_BYTES = 2**20
"""The most bytes of all files together."""
MAX_FILES = 100
MAX_PATH = 200
_STEP = r"[A-Za-z0-9_][A-Za-z0-9_-]*"
_PATH = re.compile(rf"(?:{_STEP}/){{0,8}}{_STEP}\.py")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def checked(files: Files) -> Files:
    """The files in the order of their paths.

    Raises:
        CodeError: there are none, too many, or too many bytes; a path cannot be that of a module; or a file is not
            UTF-8.
    """
    if not files:
        raise CodeError(f"the code has no {SUFFIX} file: give a Python file, or a folder with one")
    if len(files) > MAX_FILES:
        raise CodeError(
            f"the code has {len(files):,} files, more than the {MAX_FILES} that may be sent: leave some out"
        )
    if (size := sum(map(len, files.values()))) > MAX_BYTES:
        raise CodeError(f"the code has {size:,} bytes, more than the {MAX_BYTES:,} that may be sent: leave files out")
    for path, content in files.items():
        if len(path) > MAX_PATH or not _PATH.fullmatch(path):
            raise CodeError(
                f"{path!r:.250} cannot be sent: a path has letters, digits, _ and -, ends in {SUFFIX}, and stays in "
                "the folder: rename the file"
            )
        text(path, content)
    return dict(sorted(files.items()))


def read(path: Path) -> Files:
    """A Python file, or those of a folder and of the folders in it, without hidden ones.

    Raises:
        CodeError: there is no such file or folder, it cannot be read, or it is not what `checked` takes.
    """
    try:
        if not path.is_dir():
            return checked({path.name: path.read_bytes()})
        found = [file for file in sorted(path.rglob(f"*{SUFFIX}")) if file.is_file()]
        own = {file: file.relative_to(path).as_posix() for file in found}
        return checked({name: file.read_bytes() for file, name in own.items() if not _hidden(name)})
    except OSError as error:
        raise CodeError(
            f"{error.filename or path}: {error.strerror}: give a Python file, or a folder with one"
        ) from error


def _hidden(path: str) -> bool:
    return any(step.startswith(".") or step == "__pycache__" for step in path.split("/"))


def text(path: str, content: bytes) -> str:
    """The text of a file.

    Raises:
        CodeError: it is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CodeError(
            f"{path}:{line}: the byte 0x{content[error.start]:02x} is not UTF-8: save the file as UTF-8"
        ) from error


def sha256_of(files: Files) -> str:
    """The identity of the files: the SHA-256 of their paths and of their contents' SHA-256."""
    return digest([[path, hashlib.sha256(content).hexdigest()] for path, content in sorted(files.items())])


def is_sha256(name: str) -> bool:
    """Whether this can be the identity of files."""
    return _SHA256.fullmatch(name) is not None


def to_arrays(files: Files) -> Arrays:
    """The files as an artifact holds them: uint8 arrays by path."""
    import numpy as np

    return {path: np.frombuffer(content, np.uint8) for path, content in files.items()}


def from_arrays(arrays: Arrays) -> Files:
    """The files in an artifact."""
    return {path: array.tobytes() for path, array in sorted(arrays.items())}
