"""What a worker process prints while it runs a call goes to the call's log.

File descriptors 1 and 2 lead to the log during the call, so it gets what Python, C code and child processes print, and
the last words of a process that dies. Afterwards they lead where Ray had set them. What a thread prints that outlives
its call goes there, or to the next call's log; a child that outlives it keeps the descriptors, and the log.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from creditgrid.workers.call_log import RECORD_FORMAT, CallLog, log_path

LOOK_S = 0.2
"""Between two looks at how long the log is."""
SHORTEST_LOOK_S = 0.01
FLOOD = 2**22
"""Bytes that a look drops, after which the next look comes sooner."""
IDLE_LOOKS = 25
"""After so many looks without a call the thread sleeps until the next one."""

log = logging.getLogger(__name__)


@cache  # once in each process
def process_output() -> ProcessOutput:
    """The output of this process."""
    return ProcessOutput()


class ProcessOutput:
    """Takes over the output of this process, which runs one call at a time."""

    def __init__(self) -> None:
        self._usual = [os.dup(1), os.dup(2)]
        self._usual_streams = sys.stdout, sys.stderr
        self._streams = _stream(1), _stream(2)
        self._handler = logging.StreamHandler(_CurrentStderr())
        self._handler.setLevel(logging.INFO)
        self._handler.setFormatter(logging.Formatter(RECORD_FORMAT))
        self._libc = ctypes.CDLL(None)
        self._line_buffer_c()
        self._log: CallLog | None = None
        self._spare: CallLog | None = None
        self._lock = threading.Lock()
        self._called, self._asleep = threading.Event(), False
        threading.Thread(target=self._look_after_log, name="creditgrid-log", daemon=True).start()

    @contextlib.contextmanager
    def captured(self, root: Path, name: str, attempt: int) -> Iterator[None]:
        """During the block all output goes to the log; without a name, or a disk that takes it, as usual."""
        try:
            found = self._open(log_path(root, name), attempt) if name else None
        except OSError as error:
            log.warning("the output of a call is not kept: its log cannot be written: %s", error)
            found = None
        if found is None:
            yield
            return
        try:
            with warnings.catch_warnings():  # a warning is shown once in each call
                self._take(found)
                yield
        finally:
            self._give_back(found)

    def _open(self, path: Path, attempt: int) -> CallLog:
        with self._lock:
            spare, self._spare = self._spare, None
        if spare is not None:
            if spare.take(path, attempt):
                return spare
            spare.close()
        return CallLog(path, attempt)

    def _take(self, found: CallLog) -> None:
        os.dup2(found.descriptor, 1)
        os.dup2(found.descriptor, 2)
        self._streams = sys.stdout, sys.stderr = _stream(1), _stream(2)
        self._listen()
        self._log = found
        if self._asleep:
            self._called.set()

    def _listen(self) -> None:
        """Have the records of all loggers, whatever earlier calls have set."""
        root = logging.getLogger()
        if self._handler not in root.handlers:
            root.addHandler(self._handler)
        if root.level > logging.INFO:
            root.setLevel(logging.INFO)
        if root.manager.disable >= logging.INFO:
            logging.disable(logging.NOTSET)

    def _give_back(self, found: CallLog) -> None:
        _flush(sys.stdout, sys.stderr, *self._streams)
        self._libc.fflush(None)
        try:
            self._restore()
        except OSError:  # the task has closed all descriptors: where output went is lost
            self._usual = [os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)] * 2
            self._restore()
        sys.stdout, sys.stderr = self._usual_streams
        with self._lock:
            self._log = None
            # A child that lives on may print later, which must not go to the log of another call.
            if not _has_children() and found.put_by():
                self._spare = found
            else:
                found.close()

    def _restore(self) -> None:
        for usual, descriptor in zip(self._usual, (1, 2), strict=True):
            os.dup2(usual, descriptor)

    def _line_buffer_c(self) -> None:
        """Let C write each line at once, so that it is not lost with the process."""
        with contextlib.suppress(ValueError):  # another C library than glibc
            line_buffered = 1
            self._libc.setvbuf(ctypes.c_void_p.in_dll(self._libc, "stdout"), None, line_buffered, 0)

    def _look_after_log(self) -> None:
        """Bound the log, and write out lines that are not complete, as long as there is a call."""
        pause, idle = LOOK_S, 0
        while True:
            if idle >= IDLE_LOOKS:
                self._called.clear()
                self._asleep = True
                if self._log is None:
                    self._drop_spare()
                    self._called.wait()
                self._asleep, idle = False, 0
            time.sleep(pause)
            with self._lock:
                idle = idle + 1 if self._log is None else 0
                dropped = 0 if self._log is None else self._log.trim()
            _flush(*self._streams)
            pause = max(SHORTEST_LOOK_S, pause / 4) if dropped > FLOOD else min(LOOK_S, pause * 2)

    def _drop_spare(self) -> None:
        with self._lock:
            if self._spare is not None:
                self._spare.close()
                self._spare = None


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


class _Descriptor(io.RawIOBase):
    """Writes to a descriptor. A disk that is full must not fail the call, so what cannot be written is left out."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        length = len(left)
        with contextlib.suppress(OSError):
            while left:
                left = left[os.write(self._descriptor, left) :]
        return length


class _CurrentStderr:
    """Standard error, whatever it is now."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _stream(descriptor: int) -> io.TextIOWrapper:
    # Without a buffer below, which would have a lock that a fork can copy while it is held.
    raw: Any = _Descriptor(descriptor)
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _flush(*streams: Any) -> None:
    for stream in streams:
        with contextlib.suppress(Exception):  # it is closed, or what the task has put there
            stream.flush()
