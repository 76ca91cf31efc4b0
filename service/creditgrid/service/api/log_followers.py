"""How many logs are followed at a time."""

from __future__ import annotations

from creditgrid.core.errors import BusyError

MOST = 256


class LogFollowers:
    """Counts the open streams of logs; used by one event loop."""

    def __init__(self) -> None:
        self.open = 0

    def enter(self) -> None:
        """One more.

        Raises:
            BusyError: there are too many.
        """
        if self.open >= MOST:
            raise BusyError(f"{MOST} logs are followed already: try again later, or read without follow=true")
        self.open += 1

    def leave(self) -> None:
        """One less."""
        self.open -= 1
