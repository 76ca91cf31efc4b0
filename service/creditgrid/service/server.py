"""The server of one service: it holds the data directory and answers HTTP until a signal stops it."""

from __future__ import annotations

import asyncio
import gc
import math
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import cast

import uvicorn
from fastapi import FastAPI

from creditgrid.core.errors import ConflictError
from creditgrid.service import pid_lock, services
from creditgrid.service.api.app import create_app
from creditgrid.service.connections import IDLE_S, Connections, descriptor_limit
from creditgrid.service.private_files import make_private, private_umask
from creditgrid.service.settings import Settings

BACKLOG = 2048
"""Connections that may wait to be accepted."""
TICKS_PER_S = 10
"""How often uvicorn calls ``on_tick``."""


def serve(settings: Settings, on_start: Callable[[str], None]) -> None:
    """Run the service until a signal stops it; ``on_start`` gets its URL when the service can be used.

    Raises:
        ConflictError: the address, the data directory or the ledger is in use, or cannot be used.
        CreditGridError: the ledger or the results cannot be used.
        SystemExit: the application did not start; the log has the reason.
    """
    connections = Connections(descriptor_limit())
    with private_umask(), _locked(settings.data_dir), listen(settings.host, settings.port) as listener:
        app = create_app(services.create_services(settings), settings)
        url = _url(settings.host, listener.getsockname()[1])
        server = Server(app, connections, settings.grace_s, lambda: on_start(url), app.state.context.stop)
        # Objects that exist now live as long as the process: collections during a plan need not visit them.
        gc.freeze()
        try:
            server.run(sockets=[listener])
        finally:
            gc.unfreeze()  # frozen objects would outlive their modules, and DuckDB would report leaks at the exit


class Server(uvicorn.Server):
    """A uvicorn server that ends slow connections, and reports when it listens and when it starts to stop.

    Args:
        app: the application.
        connections: its connections.
        grace_s: seconds that requests have to finish when the server stops.
        on_start: is called when the server accepts connections.
        on_stop: is called first when the server stops.
    """

    def __init__(
        self,
        app: FastAPI,
        connections: Connections,
        grace_s: float,
        on_start: Callable[[], None],
        on_stop: Callable[[], None],
    ) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="on",
            server_header=False,
            proxy_headers=False,
            ws="none",
            http=cast(type[asyncio.Protocol], connections.protocol),
            timeout_keep_alive=math.ceil(IDLE_S),
            backlog=connections.batch,
            timeout_graceful_shutdown=max(1, math.ceil(grace_s)),
        )
        super().__init__(config)
        self._connections, self._on_start, self._on_stop = connections, on_start, on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            # asyncio accepts as many connections at once as may wait, so it has set both to a small number.
            listener.listen(BACKLOG)
        if self.started:
            self._on_start()

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS_PER_S == 0:
            self._connections.end_overdue()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stop()  # this ends the event streams; uvicorn would wait for their connections
        await super().shutdown(sockets)


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """Hold the data directory: two schedulers over one ledger would each run every call."""
    try:
        make_private(data_dir)
        lock = pid_lock.acquire(data_dir / "lock")
    except pid_lock.AlreadyLocked as error:
        raise ConflictError(
            f"the data directory {data_dir} is in use by the service with process id {error.owner}: "
            "stop that service, or use another --data-dir"
        ) from error
    except OSError as error:
        raise ConflictError(f"the data directory {data_dir} cannot be used: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at the address.

    Raises:
        ConflictError: the address is in use, or cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address[:2], family=family)
        _notice_dead_peers(listener)
        # asyncio sets TCP_NODELAY only where the socket names its protocol, which create_server does not. Without the
        # option every answer on a kept connection waits 40 ms for the client's delayed acknowledgement.
        return socket.socket(family, kind, protocol, fileno=listener.detach())
    except OSError as error:
        raise ConflictError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port"
        ) from error


def _notice_dead_peers(listener: socket.socket) -> None:
    """Let the system end connections whose client is gone without a word: a stream that sends nothing would stay."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):  # Linux; connections inherit it
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _url(host: str, port: int) -> str:
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        return f"http://{host}:{port}"
    if address.is_unspecified:  # "all addresses" is not an address to connect to
        return f"http://{'127.0.0.1' if address.version == 4 else '[::1]'}:{port}"
    return f"http://{address}:{port}" if address.version == 4 else f"http://[{address}]:{port}"
