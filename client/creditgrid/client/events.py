"""A sweep's events: server-sent events read as they come, and taken up again where a lost connection left off."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile

import httpx
from pydantic import ValidationError

from creditgrid.client.connection import LOST, Connection, Patience
from creditgrid.client.errors import ApiError, UnexpectedAnswer
from creditgrid.core.wire import TERMINAL_EVENT, EventView

SILENCE_S = 60.0
"""The service sends at least a comment more often; a stream that is silent for longer is lost."""
GOOD_S = 15.0
"""A stream that was open for this long was a good one, whatever ended it."""
QUIET_S = 2.0
"""A pause in a stream after which its history is taken to be told."""


@dataclass(frozen=True, slots=True)
class Message:
    """One server-sent event."""

    id: str
    type: str
    data: str


def decode(chunks: Iterable[bytes]) -> Iterator[Message]:
    """The messages in a stream, by the rules of the WHATWG's HTML standard, §9.2.6; one that is cut off is dropped.

    Only CR, LF and CRLF end a line: JSON may hold other characters that ``str.splitlines`` takes for line ends.
    """
    last_id, event_type = "", ""
    data: list[str] = []
    for line in _lines(chunks):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield Message(last_id, event_type or "message", "\n".join(data))
            event_type, data = "", []
        elif name == "data":
            data.append(value)
        elif name == "event":
            event_type = value
        elif name == "id" and "\0" not in value:
            last_id = value


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        rest += chunk
        held = rest.endswith(b"\r")  # an LF may follow in the next chunk
        whole = rest[:-1] if held else rest
        *lines, last = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")
        rest = last + (b"\r" if held else b"")


class EventStream:
    """The events at ``path``; ``since`` is the id of the last event that is already known."""

    def __init__(self, connection: Connection, path: str, since: int | None = None) -> None:
        self._connection, self._path, self._since = connection, path, since
        self._closed = False

    def close(self) -> None:
        """From another thread: end the stream when the service next sends anything."""
        self._closed = True

    def history(self) -> Iterator[EventView]:
        """What has happened until now: ends at the end of the stream, or where it pauses."""
        with self._opened(QUIET_S) as response:
            try:
                yield from self._events(response)
            except httpx.ReadTimeout:
                return

    def follow(self, finished: Callable[[], bool]) -> Iterator[EventView]:
        """Events as they happen, each once, until the service ends the stream after the terminal one.

        ``finished`` tells whether the sweep is through: then a stream without any event means that all are known.

        Raises:
            CannotConnect, ApiError: when the connection is lost and does not come back.
        """
        patience = Patience(self._connection)
        nothing_to_come = False
        while True:
            last: EventView | None = None
            opened = math.inf
            try:
                with self._opened(SILENCE_S) as response:
                    opened = time.monotonic()
                    for last in self._events(response):
                        yield last
                if last is None and nothing_to_come:
                    return
                failure: httpx.HTTPError | ApiError = httpx.RemoteProtocolError("the stream of events ended early")
            except (*LOST, ApiError) as error:
                failure = error
            if self._closed or (last is not None and last.type == TERMINAL_EVENT):
                return
            if last is not None or time.monotonic() - opened > GOOD_S:
                patience.reset()
            patience.after(failure)
            nothing_to_come = finished()

    @contextmanager
    def _opened(self, silence_s: float) -> Iterator[httpx.Response]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self._since is not None:
            headers["Last-Event-ID"] = str(self._since)
        with self._connection.stream(self._path, headers=headers, read_timeout=silence_s) as response:
            yield response

    def _events(self, response: httpx.Response) -> Iterator[EventView]:
        for message in decode(takewhile(lambda _: not self._closed, response.iter_bytes())):
            try:
                event = EventView.model_validate_json(message.data)
            except ValidationError as error:
                raise UnexpectedAnswer(
                    f"{response.request.url} sends an event that is none: {message.data:.200}"
                ) from error
            if self._since is None or event.id > self._since:  # a service may tell more than was asked for
                self._since = event.id
                yield event
