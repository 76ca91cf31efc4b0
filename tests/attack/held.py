"""Connections that send a byte a second, or nothing, or never read, for as long as the attack runs."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass, field

from .malformed import BINARY, CHUNKED, CLIENT_HELLO, JSON, request
from .tally import Tally

CORPUS = "slow connections"
CLOSED_S = 75.0
"""A connection without progress is closed by then."""


@dataclass(slots=True)
class _Line:
    """One connection that stays open: what it sends each second, and when the service closed it."""

    name: str
    connection: socket.socket
    drip: bytes
    opened: float
    must_close: bool
    closed: float | None = None


@dataclass
class Held:
    """Connections that send a byte a second, or nothing, and never read. The service must close most of them."""

    address: tuple[str, int]
    sweep: str
    token: str | None = None
    each: int = 4
    lines: list[_Line] = field(default_factory=list)

    def open(self) -> None:
        """Open them and start to drip."""
        auth = [] if self.token is None else [f"Authorization: Bearer {self.token}"]
        json, binary = [*auth, JSON], [*auth, BINARY]
        upload = "Content-Length: 10000000"
        slow: dict[str, tuple[bytes, bytes, bool]] = {
            "half-open": (b"", b"", True),
            "slow request line": (b"G", b"E", True),
            "slow headers": (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n", b"X: y\r\n", True),
            "headers without an end": (b"GET /healthz HTTP/1.1\r\nX-A: ", b"a", True),
            "slow body": (request("POST", "/v1/plans", *json, "Content-Length: 100000"), b" ", True),
            "slow chunks": (request("POST", "/v1/plans", *json, CHUNKED), b"1\r\n \r\n", True),
            "body that stops": (request("POST", "/v1/query", *json, "Content-Length: 100", body=b"{"), b"", True),
            "upload that stops": (request("POST", "/v1/checkpoints", *binary, upload, body=bytes(1000)), b"", True),
            "slow upload": (request("POST", "/v1/checkpoints", *binary, upload), b"\0", True),
            "idle after an answer": (request(), b"", True),
            "a client that never reads": (request("GET", "/openapi.json") * 200, b"", False),
            "a list that nobody reads": (request("GET", "/v1/sweeps?limit=1000", *auth) * 200, b"", False),
            "events that nobody reads": (request("GET", f"/v1/sweeps/{self.sweep}/events", *auth), b"", False),
            "TLS": (CLIENT_HELLO[:20], b"", True),
        }
        for name, (first, drip, must_close) in slow.items():
            for _ in range(self.each):
                connection = socket.socket()
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.settimeout(5)
                connection.connect(self.address)
                connection.setblocking(False)
                self.lines.append(_Line(name, connection, drip, time.monotonic(), must_close))
                _push(connection, first)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._drip)
        self._thread.start()

    def _drip(self) -> None:
        while not self._stop.wait(1.0):
            for line in self.lines:
                if line.closed is None and (not _push(line.connection, line.drip) or _is_closed(line)):
                    line.closed = time.monotonic()

    def close(self, until: float, tally: Tally) -> None:
        """Wait until the service has closed those that it must close, or ``until``; then close all."""
        while time.monotonic() < until and any(line.must_close and line.closed is None for line in self.lines):
            time.sleep(0.25)
        self._stop.set()
        self._thread.join()
        now = time.monotonic()
        for line in self.lines:
            age = (line.closed or now) - line.opened
            tally.attempt(CORPUS, line.name, "closed" if line.closed else "open", age)
            if line.closed is None and line.must_close and age > CLOSED_S:
                tally.fell_short(CORPUS, "never closed", f"{line.name}: open after {age:.0f} s")
            line.connection.close()


def _push(connection: socket.socket, data: bytes) -> bool:
    """Send what fits; False if the service has closed the connection."""
    try:
        if data:
            connection.send(data)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def _is_closed(line: _Line) -> bool:
    """Whether the service closed it; an answer counts as read only where the client reads."""
    if not line.must_close:
        return False
    try:
        return not line.connection.recv(2**16)
    except BlockingIOError:
        return False
    except OSError:
        return True
