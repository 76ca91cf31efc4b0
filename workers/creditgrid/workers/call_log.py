"""The log of a call: what its tasks print, warn and log, in one file below the artifact store's root.

Text is only appended (``O_APPEND``), by the call's process and by those that it starts. So the file needs no reader,
and has all text also when the process is killed. The last ``BOUND`` bytes are kept. The space of older ones is given
back to the file system, which leaves a hole; where it makes no holes, the kept text is written again at the front.

The first ``HEAD`` bytes are JSON: the attempts that wrote the file, and where the text of each starts. A position
counts all bytes of text that were ever written, so what has been dropped changes no position.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from creditgrid.core.files import atomic_file
from creditgrid.workers.provenance import host
from creditgrid.workers.temporary_names import GRACE_S, is_abandoned, temporary_name

FOLDER = "logs"
RECORD_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
"""A line of what is logged."""
BOUND = 2**20
"""Bytes of text that a call keeps."""
SPARE = ".spare"
"""Start of the names of empty files that workers keep."""
HEAD = 4096
SLACK = 2**16
"""Dropped bytes are given back in pieces of at least this size."""
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # of linux/falloc.h


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of the call; ``number`` counts the runs, and ``start`` is the position of its text."""

    number: int
    attempt: int
    host: str
    pid: int
    at: float
    start: int

    def line(self) -> bytes:
        """What is shown before its text."""
        at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.at))
        return f"=== attempt {self.attempt} on {self.host}, process {self.pid}, {at} ===\n".encode(errors="replace")


@dataclass(frozen=True, slots=True)
class Head:
    base: int  # the position of the first byte after the head
    attempts: Sequence[Attempt]

    def packed(self) -> bytes:
        attempts = list(self.attempts)
        while True:
            rows = [[a.number, a.attempt, a.host, a.pid, a.at, a.start] for a in attempts]
            text = json.dumps({"base": self.base, "attempts": rows}).encode()
            if len(text) < HEAD:
                return text.ljust(HEAD - 1) + b"\n"
            del attempts[0]

    @staticmethod
    def read(descriptor: int) -> Head:
        try:
            found = json.loads(os.pread(descriptor, HEAD, 0))
            return Head(int(found["base"]), [Attempt(*row) for row in found["attempts"]])
        except (ValueError, TypeError, LookupError):  # it is damaged: the text can be read without it
            return Head(0, [])


class CallLog:
    """The log of a call while one attempt writes it.

    Args:
        path: of the file, which is made if it is missing.
        attempt: shown before the attempt's text.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, attempt: int) -> None:
        self.path = path
        self._spare: Path | None = None  # its name while it is put by
        self.descriptor = _open(path)
        try:
            size = os.fstat(self.descriptor).st_size
            self._start(Head.read(self.descriptor) if size >= HEAD else Head(0, []), max(size, HEAD), attempt)
        except OSError:
            os.close(self.descriptor)
            raise

    def _start(self, head: Head, size: int, attempt: int) -> None:
        """Note an attempt whose text starts at the end of the file."""
        number = head.attempts[-1].number + 1 if head.attempts else 1
        this = Attempt(number, attempt, host(), os.getpid(), time.time(), head.base + size - HEAD)
        os.pwrite(self.descriptor, Head(head.base, [*head.attempts, this]).packed(), 0)
        fcntl.fcntl(self.descriptor, fcntl.F_SETFL, os.O_APPEND)
        self._written, self._hole = size, HEAD

    def write(self, data: bytes) -> None:
        """Append text. A disk that is full must not fail the call, so what cannot be written is left out.

        So is what a thread writes that outlives the call: the descriptor may be another file's by then.
        """
        if self.descriptor < 0:
            return
        with contextlib.suppress(OSError):
            while data:
                written = os.write(self.descriptor, data)
                data = data[written:]
                self._written += written
        if self._written - self._hole > BOUND + 2 * SLACK:
            self.trim()
            self._written = os.fstat(self.descriptor).st_size

    def trim(self) -> int:
        """Drop all but the last bytes; returns how many were dropped."""
        before = self._hole
        with contextlib.suppress(OSError):
            self._hole = _trim(self.path, self.descriptor, self._hole)
        return self._hole - before

    def put_by(self) -> bool:
        """Keep the file for a later call, under a name of this process; False if it has text, or cannot be kept.

        A new file for each call would cost several times as much as two new names.
        """
        try:
            if os.fstat(self.descriptor).st_size > HEAD:
                return False
            self._spare = self._spare or self.path.with_name(temporary_name(SPARE, ""))
            self.path.rename(self._spare)
        except OSError:
            return False
        self.path = self._spare
        return True

    def take(self, path: Path, attempt: int) -> bool:
        """Make a file that was put by the log of another call; False if it cannot be that."""
        try:
            if path.exists():
                return False
            self.path.rename(path)
            self.path = path
            fcntl.fcntl(self.descriptor, fcntl.F_SETFL, 0)
            self._start(Head(0, []), HEAD, attempt)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the file, and remove it if no attempt wrote anything."""
        try:
            self.trim()
            if os.fstat(self.descriptor).st_size <= HEAD:
                self.path.unlink(missing_ok=True)
        except OSError:  # it is on a disk that is gone, or the task has closed it: it stays as it is
            pass
        finally:
            descriptor, self.descriptor = self.descriptor, -1
            with contextlib.suppress(OSError):
                os.close(descriptor)


def trim_log(path: Path) -> None:
    """Drop all but the last bytes of a log that takes more space than it may, whoever writes it.

    Raises:
        OSError: the file cannot be written.
    """
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_APPEND)
        try:
            _trim(path, descriptor, HEAD)
        finally:
            os.close(descriptor)


def compact_log(path: Path) -> None:
    """Write what is kept of a log that nobody writes any more to a file without a hole; positions stay.

    Programs that know no holes, such as those that make archives, would read all the text that was dropped.

    Raises:
        OSError: the file cannot be read or written.
    """
    with path.open("rb") as old:
        stat, head = os.fstat(old.fileno()), Head.read(old.fileno())
        old.seek(max(HEAD, stat.st_size - BOUND))
        text = old.read(BOUND)
        base = head.base + stat.st_size - HEAD - len(text)
        with atomic_file(path, temporary_name(".compact", "")) as new:
            os.fchmod(new.fileno(), 0o600)
            new.write(Head(base, head.attempts).packed() + text)
            new.flush()
            os.utime(new.fileno(), ns=(stat.st_atime_ns, stat.st_mtime_ns))


def log_path(root: Path, name: str) -> Path:
    """The file of the log ``name`` below an artifact store's root."""
    return root / FOLDER / name


def call_logs(root: Path) -> Iterator[os.DirEntry[str]]:
    """The files of all logs."""
    with contextlib.suppress(FileNotFoundError), os.scandir(root / FOLDER) as found:
        yield from (entry for entry in found if not entry.name.startswith("."))


def abandoned_logs(root: Path, grace_s: float = GRACE_S) -> list[Path]:
    """Files that dead processes left beside the logs."""
    folder = root / FOLDER
    found = folder.glob(".*") if folder.is_dir() else ()
    return [path for path in found if is_abandoned(path, grace_s)]


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags, 0o600)


def _trim(path: Path, descriptor: int, hole: int) -> int:
    """Give back what comes before the last ``BOUND`` bytes; returns the offset where the kept text starts."""
    size = os.fstat(descriptor).st_size
    end = (size - BOUND) // HEAD * HEAD
    if end - hole < SLACK:
        return hole
    try:
        _punch(descriptor, hole, end - hole)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTSUP):
            raise
        _move_to_front(path, descriptor)
        return HEAD
    return end


def _punch(descriptor: int, start: int, length: int) -> None:
    libc = _libc()
    if sys.platform != "linux":
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    if libc.fallocate64(descriptor, _KEEP_SIZE | _PUNCH_HOLE, start, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "linux":
        libc.fallocate64.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return libc


def _move_to_front(path: Path, descriptor: int) -> None:
    """Write the kept text again after the head. What others write meanwhile may be lost."""
    head, size = Head.read(descriptor), os.fstat(descriptor).st_size
    text = os.pread(descriptor, BOUND, size - BOUND)
    front = os.open(path, os.O_WRONLY | os.O_CLOEXEC)  # pwrite to a descriptor with O_APPEND appends
    try:
        os.ftruncate(front, HEAD)
        os.pwrite(front, Head(head.base + size - HEAD - len(text), head.attempts).packed(), 0)
    finally:
        os.close(front)
    os.write(descriptor, text)
