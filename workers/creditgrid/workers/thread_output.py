"""What threads of this process print while each runs a call goes to that call's log.

Threads share the file descriptors, so only Python's output can be told apart: ``sys.stdout``, ``sys.stderr``, warnings
and the records of loggers, of the thread that runs the call. C code, child processes and other threads print as usual.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from creditgrid.workers.call_log import RECORD_FORMAT, CallLog, log_path

_log: ContextVar[CallLog | None] = ContextVar("creditgrid_call_log", default=None)

log = logging.getLogger(__name__)


class ThreadOutput:
    """Takes over the output of the threads of this process that run calls, from ``start`` to ``stop``."""

    def __init__(self) -> None:
        self._streams: tuple[_Stream, _Stream] | None = None
        self._handler = _Handler()
        self._level = logging.NOTSET

    def start(self) -> None:
        self._streams = sys.stdout, sys.stderr = _Stream(sys.stdout), _Stream(sys.stderr)
        root = logging.getLogger()
        self._level = root.level
        root.addHandler(self._handler)
        root.setLevel(min(root.level, logging.INFO))

    def stop(self) -> None:
        """Restore what was there before, apart from what others have replaced since."""
        if self._streams is None:
            return
        out, err = self._streams
        sys.stdout = out.usual if sys.stdout is out else sys.stdout
        sys.stderr = err.usual if sys.stderr is err else sys.stderr
        root = logging.getLogger()
        root.removeHandler(self._handler)
        root.setLevel(self._level)
        self._streams = None

    @contextlib.contextmanager
    def captured(self, root: Path, name: str, attempt: int) -> Iterator[None]:
        """During the block this thread's output goes to the log; without a name, or a disk that takes it, as usual."""
        try:
            found = CallLog(log_path(root, name), attempt) if name else None
        except OSError as error:
            log.warning("the output of a call is not kept: its log cannot be written: %s", error)
            found = None
        if found is None:
            yield
            return
        warnings.simplefilter("default", append=True)  # changes only that warnings count as not shown yet
        before = _log.set(found)
        try:
            yield
        finally:
            _log.reset(before)
            found.close()


class _Stream:
    """The log of the thread's call, or the usual stream in a thread without one."""

    def __init__(self, usual: Any) -> None:
        self.usual = usual

    def write(self, text: str) -> int:
        found = _log.get()
        if found is None:
            return int(self.usual.write(text) or 0)
        found.write(text.encode(errors="backslashreplace"))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    @property
    def buffer(self) -> Any:
        """Takes bytes."""
        return self.usual.buffer if (found := _log.get()) is None else _Bytes(found)

    def flush(self) -> None:
        if _log.get() is None:
            self.usual.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.usual, name)


class _Bytes:
    def __init__(self, found: CallLog) -> None:
        self._log = found

    def write(self, data: Any) -> int:
        self._log.write(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing waits."""


class _Handler(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter(RECORD_FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        found = _log.get()
        if found is not None:
            try:
                found.write(f"{self.format(record)}\n".encode(errors="backslashreplace"))
            except Exception:  # the record is the task's
                self.handleError(record)
