"""Reads an iterator in a thread, a few items ahead of who uses them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")

DEPTH = 4
"""Items that wait to be used."""
POLL_S = 0.1


class ReadAhead(Generic[Item]):
    """Iterate it once, within ``with``. An error of the iterator is raised in its place.

    Args:
        items: read by the thread alone until the end of ``with``.
        abandoned: set at the end of ``with``; an iterator that waits must look at it and raise.
    """

    def __init__(self, items: Iterable[Item], abandoned: threading.Event) -> None:
        self._items, self._abandoned = items, abandoned
        self._queue: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(DEPTH)
        self._thread = threading.Thread(target=self._read, name="creditgrid-read-ahead", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._abandoned.set()
        self._thread.join()

    def __iter__(self) -> Iterator[Item]:
        while True:
            item, error = self._queue.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    @property
    def ready(self) -> bool:
        """Whether the next item, or the end, is there."""
        return not self._queue.empty()

    def _read(self) -> None:
        try:
            for item in self._items:
                self._put(item, None)
            self._put(None, None)
        except BaseException as error:  # it is raised where the items are used
            self._put(None, error)

    def _put(self, item: Item | None, error: BaseException | None) -> None:
        while not self._abandoned.is_set():
            try:
                self._queue.put((item, error), timeout=POLL_S)
            except queue.Full:
                continue
            return
