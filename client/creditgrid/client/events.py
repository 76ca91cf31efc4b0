"""A sweep's events: server-sent events, read as they arrive, and from the last one on after a lost connection."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import takewhile

import httpx
from httpx_sse import EventSource, SSEError
from pydantic import ValidationError

from creditgrid.client.connection import LOST, Connection, Patience, resource
from creditgrid.client.errors import ApiError, UnexpectedAnswer
from creditgrid.core.wire import TERMINAL_EVENT, EventView, SweepView

SILENCE_S = 60.0
"""The service sends at least a comment more often; a stream that is silent for longer is lost."""
GOOD_S = 15.0
"""A stream that was open for this long was a good one, whatever ended it."""
QUIET_S = 2.0
"""A pause in a stream after which its history is taken to be complete."""


class EventStream:
    """The events of one sweep; ``since`` is the id of the last event that is already known."""

    def __init__(self, connection: Connection, sweep: str, since: int | None = None) -> None:
        self._connection, self._sweep, self._since = connection, sweep, since
        self._closed = False

    def close(self) -> None:
        """From another thread: end the stream when the service next sends anything."""
        self._closed = True

    def history(self) -> Iterator[EventView]:
        """The events until now: ends at the end of the stream, or where it pauses."""
        with self._opened(QUIET_S) as response:
            try:
                yield from self._events(response)
            except httpx.ReadTimeout:
                return

    def follow(self) -> Iterator[EventView]:
        """Events as they happen, each once, until the service ends the stream after the terminal one.

        Raises:
            CannotConnect, ApiError: when the connection is lost and does not come back.
        """
        patience = Patience(self._connection)
        sweep_finished = False  # then a stream without any event means that all are known
        while True:
            last: EventView | None = None
            opened = math.inf
            try:
                with self._opened(SILENCE_S) as response:
                    opened = time.monotonic()
                    for last in self._events(response):
                        yield last
                if last is None and sweep_finished:
                    return
                failure: httpx.HTTPError | ApiError = httpx.RemoteProtocolError("the stream of events ended early")
            except (*LOST, ApiError) as error:
                failure = error
            if self._closed or (last is not None and last.type == TERMINAL_EVENT):
                return
            if last is not None or time.monotonic() - opened > GOOD_S:
                patience.reset()
            patience.after(failure)
            sweep_finished = self._connection.get(SweepView, "sweeps", self._sweep).state.finished

    def _opened(self, silence_s: float) -> AbstractContextManager[httpx.Response]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self._since is not None:
            headers["Last-Event-ID"] = str(self._since)
        path = resource("sweeps", self._sweep, "events")
        return self._connection.stream(path, headers=headers, read_timeout=silence_s)

    def _events(self, response: httpx.Response) -> Iterator[EventView]:
        # Any bytes may end the stream, also those of a comment, which is not a message.
        chunks = takewhile(lambda _: not self._closed, response.iter_bytes())
        kind = {"Content-Type": response.headers.get("Content-Type", "")}
        source = EventSource(httpx.Response(response.status_code, headers=kind, content=chunks))
        url = response.request.url
        try:
            for message in source.iter_sse():
                if message.data:  # httpx-sse also yields messages without data; the standard does not
                    event = _event(message.data, url)
                    if self._since is None or event.id > self._since:  # a service may send more than was asked for
                        self._since = event.id
                        yield event
        except SSEError as error:
            raise UnexpectedAnswer(f"{url} sends no events: {error}") from error


def _event(data: str, url: httpx.URL) -> EventView:
    try:
        return EventView.model_validate_json(data)
    except ValidationError as error:
        raise UnexpectedAnswer(f"{url} sends an event that cannot be read: {data:.200}") from error
