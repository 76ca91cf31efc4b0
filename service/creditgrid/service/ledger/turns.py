"""A lock that threads get in the order in which they ask for it."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class Turns:
    """A lock. Who asks first gets it first: a thread that takes it again and again keeps nobody waiting for long."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._holder: int | None = None
        self._waiting: deque[tuple[int, threading.Lock]] = deque()

    @property
    def awaited(self) -> bool:
        """Whether a thread waits."""
        return bool(self._waiting)

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._guard:
            if self._holder is None:
                self._holder = me
                return
            if self._holder == me:
                raise RuntimeError("this thread has the lock already")
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append((me, mine))
        mine.acquire()  # until the thread before hands the lock over

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        with self._guard:
            if not self._waiting:
                self._holder = None
                return
            self._holder, following = self._waiting.popleft()
            following.release()
