"""The server of one service: it holds the data directory and answers HTTP until a signal stops it."""

from __future__ import annotations

import gc
import math
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import uvicorn

from creditgrid.core.errors import ConflictError
from creditgrid.service import pid_lock, services
from creditgrid.service.api.app import create_app
from creditgrid.service.settings import Settings


def serve(settings: Settings, on_start: Callable[[str], None]) -> None:
    """Run the service until a signal stops it; ``on_start`` gets its URL when the service can be used.

    Raises:
        ConflictError: the address, the data directory or the ledger is in use, or cannot be used.
        CreditGridError: the ledger or the results cannot be used.
        SystemExit: the application did not start; the log has the reason.
    """
    with _locked(settings.data_dir), _listen(settings.host, settings.port) as listener:
        app = create_app(services.create_services(settings), settings)
        url = _url(settings.host, listener.getsockname()[1])
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="on",
            server_header=False,
            timeout_graceful_shutdown=max(1, math.ceil(settings.grace_s)),
        )
        server = _Server(config, lambda: on_start(url), app.state.context.stop)
        # Objects that exist now live as long as the process: collections during a plan need not visit them.
        gc.freeze()
        try:
            server.run(sockets=[listener])
        finally:
            gc.unfreeze()  # frozen objects would outlive their modules, and DuckDB would report leaks at the exit


class _Server(uvicorn.Server):
    """A uvicorn server that reports when it listens and when it starts to stop."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None], on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start, self._on_stop = on_start, on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stop()  # this ends the event streams; uvicorn would wait for their connections
        await super().shutdown(sockets)


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """Hold the data directory: two schedulers over one ledger would each run every call."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
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


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise ConflictError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port"
        ) from error


def _url(host: str, port: int) -> str:
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        return f"http://{host}:{port}"
    if address.is_unspecified:  # "all addresses" is not an address to connect to
        return f"http://{'127.0.0.1' if address.version == 4 else '[::1]'}:{port}"
    return f"http://{address}:{port}" if address.version == 4 else f"http://[{address}]:{port}"
