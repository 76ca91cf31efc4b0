"""The connections of the server: how many may be open, how long each may take, and which go when there are too many.

uvicorn limits neither the time of a request's head nor the number of connections, and asyncio stops to accept when the
descriptors run out. Here every connection is in one of four phases, and each phase has a limit:

- ``WAITING`` for a request, or for the rest of its head: ``HEAD_S``, or ``IDLE_S`` after an answer;
- ``RECEIVING`` a body: ``api/body_limit`` ends what arrives too slowly;
- ``ANSWERING``: as long as it takes, if the client reads what it is sent. Event streams stay here;
- ``CLOSING``: until the client has read the rest.

When there are too many, the oldest connection without a whole request makes room. So clients that do not finish their
requests cannot keep out those that do. The last places are kept for probes: ``/healthz``, ``/readyz``, ``/metrics``.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import resource
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import structlog
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from creditgrid.core.errors import ConflictError
from creditgrid.core.wire import Problem
from creditgrid.service.api.problems import MEDIA_TYPE, RETRY_LATER, problem
from creditgrid.service.api.requests import QUIET

HEAD_S = 10.0
"""Time for the head of a request, from its first byte; for the first one of a connection, from the start."""
IDLE_S = 30.0
"""Time between an answer and the next request."""
UNREAD_S = 30.0
LEAST_RATE = 16 * 2**10
"""A client may leave an answer unread for ``UNREAD_S`` seconds, and one more for each ``LEAST_RATE`` bytes it reads."""
MAX_HEAD_BYTES = 32 * 2**10
MAX_HEADERS = 100
MAX_PIPELINED = 16
"""Requests that may wait on one connection while an earlier one is answered."""

MAX_CONNECTIONS = 4096
MAX_DESCRIPTORS = 65_536
"""More than that are not asked for; they would serve nothing."""
OWN_DESCRIPTORS = (176, 2048)
"""Descriptors for the files, databases and children of the service: at least, and at most. In between it is a half."""
LEAST_DESCRIPTORS = 224
SHOWN_S = 60.0
"""Time between two log lines about dropped connections."""

PROBES = frozenset(path.encode() for path in QUIET)

log = structlog.get_logger()


class Phase(enum.Enum):
    """What a connection does."""

    WAITING = enum.auto()
    RECEIVING = enum.auto()
    ANSWERING = enum.auto()
    CLOSING = enum.auto()


class Connections:
    """All open connections of one server.

    Args:
        descriptors: how many files this process may have open.
    """

    def __init__(self, descriptors: int) -> None:
        own = max(OWN_DESCRIPTORS[0], min(descriptors // 2, OWN_DESCRIPTORS[1]))
        self.batch = max(4, min(64, descriptors // 64))
        """How many connections may be accepted in one step of the event loop."""
        # A connection is closed some steps after it was chosen for that, and more are accepted meanwhile.
        self.most = min(MAX_CONNECTIONS, descriptors - own - 4 * self.batch)
        self.most_requests = self.most - max(4, self.most // 16)
        self._open: set[Connection] = set()
        self._oldest: deque[Connection] = deque()
        self._dropped = 0
        self._shown_at = -SHOWN_S

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._open))

    def protocol(self, config: Config, server_state: ServerState, **options: Any) -> Connection:
        """A new connection; uvicorn calls this."""
        return Connection(self, config, server_state, **options)

    def add(self, connection: Connection) -> None:
        """Admit a connection; if there are too many, an older one without a whole request goes."""
        self._open.add(connection)
        if len(self._open) > self.most and not self._drop_oldest(Phase.WAITING, Phase.RECEIVING, Phase.CLOSING):
            connection.end(problem(503, "all connections are in use: try again later"))
            self._count_dropped()

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self._open.discard(connection)

    def may_answer(self, path: bytes, running: int) -> bool:
        """Whether one more request may start while so many run. One whose body is still missing makes room."""
        return path in PROBES or running < self.most_requests or self._drop_oldest(Phase.RECEIVING)

    def end_overdue(self) -> None:
        """End the connections that take too long; call this every second."""
        now = asyncio.get_running_loop().time()
        for connection in self:
            connection.end_if_overdue(now)

    def _drop_oldest(self, *phases: Phase) -> bool:
        """Drop a connection in one of these phases: one that has not had an answer yet before the others."""
        # The list of an earlier call serves the next ones, so that a flood does not sort all connections at each one.
        for renew in (False, True):
            if renew:
                self._oldest = self._sorted(phases)
            while self._oldest:
                connection = self._oldest.popleft()
                if connection in self._open and connection.phase in phases:
                    self._open.discard(connection)  # it takes some steps until it is closed
                    connection.transport.abort()
                    self._count_dropped()
                    return True
        return False

    def _sorted(self, phases: tuple[Phase, ...]) -> deque[Connection]:
        found = [connection for connection in self._open if connection.phase in phases]
        found.sort(key=lambda connection: (connection.answered > 0, connection.since))
        return deque(found[:-1])  # the newest had no chance yet

    def _count_dropped(self) -> None:
        self._dropped += 1
        now = asyncio.get_running_loop().time()
        if now - self._shown_at >= SHOWN_S:
            log.warning("connections were dropped: too many are open", dropped=self._dropped, most=self.most)
            self._dropped, self._shown_at = 0, now


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with the limits above."""

    def __init__(self, connections: Connections, config: Config, server_state: ServerState, **options: Any) -> None:
        super().__init__(config, server_state, **options)
        self._all = connections
        self.since = self.loop.time()  # when the phase was first seen
        self.answered = 0
        self._seen = Phase.WAITING, self.answered
        self._head_since: float | None = None  # while the head of a request arrives
        self._head_bytes = 0
        self._unread: tuple[float, int] | None = None  # since when bytes wait for the client, and how many there were

    @property
    def phase(self) -> Phase:
        """What the connection does now."""
        if self.transport.is_closing():
            return Phase.CLOSING
        if self.cycle is None or self.cycle.response_complete:
            return Phase.WAITING
        return Phase.RECEIVING if self.cycle.more_body else Phase.ANSWERING

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol; so are the methods below."""
        super().connection_made(transport)
        self._all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._all.remove(self)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_since is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.end(problem(431, f"the head of a request is longer than {MAX_HEAD_BYTES:,} bytes"))

    def on_message_begin(self) -> None:
        """See httptools; so are the methods below. What one raises is answered with 400."""
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests wait on one connection")
        self._head_since, self._head_bytes = self.loop.time(), 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_since is None:  # a trailer of a body in chunks: nothing reads it
            return
        if len(self.headers) >= MAX_HEADERS:
            self.end(problem(431, f"a request has more than {MAX_HEADERS} headers"))
            raise ValueError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head_since = None
        scheme, found, rest = self.url.partition(b"://")
        if found and b"/" not in scheme:  # a whole URL names the host, whatever the header says (RFC 9112, 3.2.2)
            self.headers[:] = [(name, value) for name, value in self.headers if name != b"host"]
            self.headers.append((b"host", rest.partition(b"/")[0]))
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            raise ValueError("a request names one host")
        self.app = self.config.loaded_app if self._all.may_answer(self.url, len(self.tasks)) else _unavailable
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        self.answered += 1
        super().on_response_complete()

    def shutdown(self) -> None:
        """Finish what is being answered; what has not arrived by now is not waited for."""
        if self.phase is Phase.RECEIVING:
            self.transport.abort()
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Answer what is not HTTP, as uvicorn does, but with a problem document."""
        self.end(problem(400, "this is not HTTP/1.1, or the head of a request or a chunk of its body has a fault"))

    def end(self, why: Problem) -> None:
        """Close the connection, with this answer unless another one is being sent."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not (self.cycle.response_started or self.pipeline):
            self.transport.write(_as_bytes(why))
        self.transport.close()

    def end_if_overdue(self, now: float) -> None:
        """End the connection if it has been in its phase for too long."""
        phase = self.phase
        if (phase, self.answered) != self._seen:
            self._seen, self.since = (phase, self.answered), now
        if self._leaves_unread(phase, now):
            self.transport.abort()
        elif phase is Phase.WAITING and self._head_since is not None:
            if now - max(self._head_since, self.since) > HEAD_S:
                self.end(problem(408, f"the head of the request did not arrive within {HEAD_S:g} s"))
        elif phase is Phase.WAITING and now - self.since > (IDLE_S if self.answered else HEAD_S):
            self.transport.close()

    def _leaves_unread(self, phase: Phase, now: float) -> bool:
        waiting = self.transport.get_write_buffer_size()
        if not waiting or (phase in (Phase.RECEIVING, Phase.ANSWERING) and not self.flow.write_paused):
            self._unread = None
            return False
        since, at_first = self._unread = self._unread or (now, waiting)
        return now - since > UNREAD_S + (at_first - waiting) / LEAST_RATE


def descriptor_limit() -> int:
    """How many files this process may have open, after its limit was raised to what it may raise it to.

    Raises:
        ConflictError: they are too few for a service.
    """
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (
        min(MAX_DESCRIPTORS, limit) if limit != resource.RLIM_INFINITY else MAX_DESCRIPTORS for limit in (now, most)
    )
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):  # macOS allows less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, most))
            soft = hard
    if soft < LEAST_DESCRIPTORS:
        raise ConflictError(
            f"this process may open {soft} files, and a service needs {LEAST_DESCRIPTORS}: raise the limit, "
            "such as by ulimit -n 4096"
        )
    return soft


def _as_bytes(why: Problem, headers: dict[str, str] | None = None) -> bytes:
    body = why.model_dump_json(exclude_none=True).encode()
    fields = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), "connection": "close", **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {why.status} {why.title}\r\n{head}\r\n".encode() + body


async def _unavailable(_scope: Any, _receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    """The answer to a request when too many are being answered."""
    body = problem(503, "too many requests are being answered: try again later").model_dump_json(exclude_none=True)
    fields = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), "connection": "close", **RETRY_LATER}
    headers = [(name.lower().encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})
