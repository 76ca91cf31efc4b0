"""Following a sweep until it is finished: its view is requested when events arrive, and at intervals.

A service that has answered before and does not answer now is waited for: it, or its machine, may be restarting.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from creditgrid.client.connection import UNAVAILABLE, Connection
from creditgrid.client.errors import ApiError, CannotConnect, WaitTimeout
from creditgrid.client.events import EventStream
from creditgrid.core.errors import CreditGridError
from creditgrid.core.wire import EventView, SweepView

SHORTEST_S = 0.25
"""The view is requested no more often than this, however many events arrive."""
LONGEST_S = 2.0
"""The view is requested at least this often, even without events."""
AWAY_S = 900.0
"""A service that has answered before is waited for this long."""


class Update(NamedTuple):
    """The latest view, the new events, and the error if the service did not answer this time."""

    view: SweepView
    events: Sequence[EventView] = ()
    error: CannotConnect | ApiError | None = None


def updates(
    connection: Connection, view: SweepView, timeout: float | None = None, patient: bool = True
) -> Iterator[Update]:
    """Updates of a sweep until it is finished.

    Args:
        view: the sweep's latest known view.
        timeout: give up after this many seconds.
        patient: whether to wait for a service that does not answer.

    Raises:
        WaitTimeout: if the sweep is not finished after ``timeout`` seconds.
        CannotConnect, ApiError: if the service does not answer; with ``patient``, only after AWAY_S seconds.
    """
    started = answered = time.monotonic()
    reader = EventReader(connection, view.id)
    try:
        while True:
            asked = time.monotonic()
            try:
                view = connection.get(SweepView, "sweeps", view.id)
            except (CannotConnect, ApiError) as error:
                if not patient or not _may_come_back(error) or time.monotonic() - answered > AWAY_S:
                    raise
                if timeout is not None and time.monotonic() - started > timeout:
                    raise _timed_out(view, started) from error
                yield Update(view, error=error)
                time.sleep(SHORTEST_S)
                continue
            answered = time.monotonic()
            yield Update(view, reader.take())
            if view.state.finished:
                return
            left = LONGEST_S if timeout is None else min(LONGEST_S, started + timeout - time.monotonic())
            if left <= 0:
                raise _timed_out(view, started)
            time.sleep(max(0.0, min(left, asked + SHORTEST_S - time.monotonic())))
            reader.wait(max(0.0, asked + left - time.monotonic()))
    finally:
        reader.stop()


def _may_come_back(error: CreditGridError) -> bool:
    """Whether a service that is restarting causes this error."""
    return isinstance(error, CannotConnect) or (isinstance(error, ApiError) and error.problem.status in UNAVAILABLE)


class EventReader:
    """Reads a sweep's events in a thread of its own. If they do not arrive, updates only come later."""

    def __init__(self, connection: Connection, sweep: str) -> None:
        self._stream = EventStream(connection, sweep)
        self._events: queue.Queue[EventView] = queue.Queue(maxsize=1000)
        self._arrived, self._stopped = threading.Event(), threading.Event()
        threading.Thread(target=self._read, name=f"events of {sweep}", daemon=True).start()

    def wait(self, seconds: float) -> None:
        """Wait until an event has arrived, at most ``seconds``."""
        self._arrived.wait(seconds)

    def take(self) -> list[EventView]:
        """The events since the last call."""
        self._arrived.clear()
        return [self._events.get() for _ in range(self._events.qsize())]

    def stop(self) -> None:
        """The thread ends when the service next sends anything, or with the process."""
        self._stopped.set()
        self._stream.close()

    def _read(self) -> None:
        try:
            while not self._stopped.is_set():
                try:
                    for event in self._stream.follow():
                        self._put(event)
                except (CannotConnect, ApiError) as error:
                    if not _may_come_back(error):
                        raise
                self._stopped.wait(LONGEST_S)  # a sweep that is retried has more events after a terminal one
        except CreditGridError:
            return  # the requests for the view raise it too
        except Exception:
            if not self._stopped.is_set():  # otherwise the client was closed during the read
                raise

    def _put(self, event: EventView) -> None:
        while not self._stopped.is_set():
            try:
                self._events.put(event, timeout=1.0)
            except queue.Full:
                continue
            self._arrived.set()
            return


def _timed_out(view: SweepView, started: float) -> WaitTimeout:
    done = sum(n for state, n in view.counts.items() if state.finished)
    waited = time.monotonic() - started
    return WaitTimeout(
        f"sweep {view.id} is {view.state} after {waited:.0f} s of waiting: {done} of {view.cells} cells are finished; "
        "the sweep continues"
    )
