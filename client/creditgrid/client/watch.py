"""Following a sweep: its events say when to look, and it is looked at now and then without them.

A service that was there and is away, because it or its machine is being started again, is waited for.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from creditgrid.client.connection import UNAVAILABLE
from creditgrid.client.errors import ApiError, CannotConnect, WaitTimeout
from creditgrid.core.errors import CreditGridError
from creditgrid.core.wire import EventView, SweepView

if TYPE_CHECKING:
    from creditgrid.client.sweep import Sweep

SHORTEST_S = 0.25
"""The service is asked no more often than this, however many events come."""
LONGEST_S = 2.0
"""And no less often than this, should events not come through."""
AWAY_S = 900.0
"""A service that has answered before is waited for this long."""


def updates(
    sweep: Sweep,
    timeout: float | None = None,
    away: Callable[[CreditGridError], None] = lambda _error: None,
    patient: bool = True,
) -> Iterator[tuple[SweepView, list[EventView]]]:
    """The sweep's view and the events since the last one, again and again until it is through.

    Args:
        sweep: which one.
        timeout: seconds until it is given up.
        away: hears of each time that the service, which had answered before, could not be had.
        patient: whether the service may come back, and is waited for.

    Raises:
        WaitTimeout: if it is not through after ``timeout`` seconds.
        CannotConnect, ApiError: if the service is away, of a patient wait for longer than AWAY_S seconds.
    """
    started = heard = time.monotonic()
    reader = _Reader(sweep)
    try:
        while True:
            asked = time.monotonic()
            try:
                view = sweep.refresh()
            except (CannotConnect, ApiError) as error:
                if not patient or not _passes(error) or time.monotonic() - heard > AWAY_S:
                    raise
                if timeout is not None and time.monotonic() - started > timeout:
                    raise _timed_out(sweep.view, started) from error
                away(error)
                time.sleep(SHORTEST_S)
                continue
            heard = time.monotonic()
            yield view, reader.take()
            if view.state.finished:
                return
            left = LONGEST_S if timeout is None else min(LONGEST_S, started + timeout - time.monotonic())
            if left <= 0:
                raise _timed_out(view, started)
            time.sleep(max(0.0, min(left, asked + SHORTEST_S - time.monotonic())))
            reader.wait(max(0.0, asked + left - time.monotonic()))
    finally:
        reader.stop()


def _passes(error: CreditGridError) -> bool:
    """Whether this is what a service looks like that is being started again."""
    return isinstance(error, CannotConnect) or (isinstance(error, ApiError) and error.problem.status in UNAVAILABLE)


class _Reader:
    """Reads a sweep's events in a thread of its own; where they do not come through, nothing is missed but haste."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep, self._stream = sweep, sweep.event_stream()
        self._events: queue.Queue[EventView] = queue.Queue(maxsize=1000)
        self._news, self._stopped = threading.Event(), threading.Event()
        threading.Thread(target=self._read, name=f"events of {sweep.id}", daemon=True).start()

    def wait(self, seconds: float) -> None:
        """Wait for news."""
        self._news.wait(seconds)

    def take(self) -> list[EventView]:
        """The events since the last time."""
        self._news.clear()
        return [self._events.get() for _ in range(self._events.qsize())]

    def stop(self) -> None:
        """The thread ends when the service next sends anything, or with the process."""
        self._stopped.set()
        self._stream.close()

    def _read(self) -> None:
        try:
            while not self._stopped.is_set():
                try:
                    for event in self._stream.follow(self._sweep.is_finished):
                        self._put(event)
                except (CannotConnect, ApiError) as error:
                    if not _passes(error):
                        raise
                self._stopped.wait(LONGEST_S)  # a sweep that is tried again has more events after a terminal one
        except CreditGridError:
            return  # without events the sweep is looked at in even intervals, and that one tells what is wrong
        except Exception:
            if not self._stopped.is_set():  # else the connection was closed under it
                raise

    def _put(self, event: EventView) -> None:
        while not self._stopped.is_set():
            try:
                self._events.put(event, timeout=1.0)
            except queue.Full:
                continue
            self._news.set()
            return


def _timed_out(view: SweepView, started: float) -> WaitTimeout:
    done = sum(n for state, n in view.counts.items() if state.finished)
    waited = time.monotonic() - started
    return WaitTimeout(
        f"sweep {view.id} is {view.state} after {waited:.0f} s of waiting: {done} of {view.cells} cells are through; "
        "it goes on"
    )
