"""A small HTTP/1.1 client for load: one connection, one request at a time, and hardly any time of its own."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

WAIT_S = 1200.0
Head = tuple[int, dict[bytes, bytes]]


class NoAnswer(Exception):
    """The connection failed, or nothing came in time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, headers with lower-case names, a body, and the seconds from the first byte sent to the last read."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes
    seconds: float

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """A connection that is kept, and opened again when the service has closed it while it was idle."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def get(self, path: str, **headers: str) -> Answer:
        """GET; ``if_none_match="…"`` becomes the header ``if-none-match``."""
        return await self.request("GET", path, headers=headers)

    async def post(self, path: str, document: Any = None) -> Answer:
        """POST of JSON."""
        body = b"" if document is None else json.dumps(document).encode()
        return await self.request("POST", path, body, {} if document is None else {"content-type": "application/json"})

    async def request(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        """Send a request and read the whole answer.

        Raises:
            NoAnswer: the connection failed or nothing came in time.
        """
        started = time.perf_counter()
        try:
            async with asyncio.timeout(WAIT_S):
                status, found = await self._start(method, path, body, headers or {})
                content = b"".join([part async for part in self._body(method, status, found)])
        except (OSError, EOFError, ValueError, TimeoutError, asyncio.LimitOverrunError) as error:
            self.close()
            raise NoAnswer(f"{method} {path}: {type(error).__name__} {error}") from error
        if found.get(b"connection", b"").lower() == b"close":
            self.close()
        return Answer(status, found, content, time.perf_counter() - started)

    async def lines(self, path: str) -> AsyncIterator[bytes]:
        """The lines of a stream, such as server-sent events, until it ends.

        Raises:
            NoAnswer: it was refused, or broke.
        """
        rest = b""
        try:
            status, found = await self._start("GET", path, b"", {})
            if status != 200:
                raise NoAnswer(f"GET {path}: {status}")
            async for part in self._body("GET", status, found):
                *whole, rest = (rest + part).split(b"\n")
                for line in whole:
                    yield line
        except (OSError, EOFError, ValueError) as error:
            raise NoAnswer(f"GET {path}: {type(error).__name__} {error}") from error
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _start(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Head:
        lines = [f"{method} {path} HTTP/1.1", "host: localhost"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if body or method == "POST":
            lines.append(f"content-length: {len(body)}")
        data = "\r\n".join([*lines, "", ""]).encode() + body
        kept = self._streams is not None
        try:
            return await self._exchange(data)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.close()
            if not kept:
                raise
        return await self._exchange(data)  # the service had closed the idle connection

    async def _exchange(self, data: bytes) -> Head:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        writer.write(data)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        pairs = (line.partition(b":") for line in lines if line)
        return int(first[9:12]), {name.lower(): value.strip() for name, _, value in pairs}

    async def _body(self, method: str, status: int, headers: dict[bytes, bytes]) -> AsyncIterator[bytes]:
        assert self._streams is not None
        reader = self._streams[0]
        if headers.get(b"transfer-encoding") == b"chunked":
            while size := int(await reader.readuntil(b"\r\n"), 16):
                yield (await reader.readexactly(size + 2))[:-2]
            await reader.readuntil(b"\r\n")
        elif method != "HEAD" and status not in (204, 304):
            yield await reader.readexactly(int(headers.get(b"content-length", b"0")))
