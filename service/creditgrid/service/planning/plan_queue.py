"""Who plans next: few plans run at a time, so that planning takes neither the machine nor the threads from others.

Reading and validating a spec takes a slot of the first lane. A large plan then gives it back and takes the slot of the
second, so a small plan never waits for a large one. In each lane the owner with the fewest plans comes first.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

LARGE = 20_000
"""Cells; a plan of more is large."""
SMALL_SLOTS = 3
LARGE_SLOTS = 1
POLL_S = 0.1


class Lane:
    """At most ``slots`` plans at a time; others wait, the owner with the fewest plans first."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._changed = threading.Condition()
        self._waiting: list[tuple[object, str | None]] = []  # a ticket and its owner, in the order of arrival
        self._running = Counter[str | None]()

    @contextmanager
    def slot(self, owner: str | None, check: Callable[[], None]) -> Iterator[None]:
        """Hold a slot.

        Args:
            owner: who plans.
            check: called often while it waits; what it raises ends the wait.
        """
        ticket = object()
        with self._changed:
            self._waiting.append((ticket, owner))
            try:
                while not self._is_next(ticket):
                    self._changed.wait(POLL_S)
                    check()
                self._running[owner] += 1
            finally:
                self._waiting.remove((ticket, owner))
        try:
            yield
        finally:
            with self._changed:
                self._running[owner] -= 1
                self._running += Counter()  # forget owners without plans
                self._changed.notify_all()

    def _is_next(self, ticket: object) -> bool:
        if self._running.total() >= self._slots:
            return False
        first = min(self._waiting, key=lambda waiting: self._running[waiting[1]])  # of equals the first that came
        return first[0] is ticket


class PlanQueue:
    """The two lanes."""

    def __init__(self) -> None:
        self._small, self._large = Lane(SMALL_SLOTS), Lane(LARGE_SLOTS)

    @contextmanager
    def slot(self, owner: str | None, check: Callable[[], None]) -> Iterator[Callable[[int], None]]:
        """Hold a slot of the first lane. Call what it yields with the number of cells: a large plan changes the lane.

        Args:
            owner: who plans.
            check: called often while it waits; what it raises ends the wait.
        """
        with ExitStack() as held:
            held.enter_context(self._small.slot(owner, check))

            def sized(cells: int) -> None:
                if cells > LARGE:
                    held.close()
                    held.enter_context(self._large.slot(owner, check))

            yield sized
