"""The commands: ``serve`` runs the service, ``plan`` makes a dry run of a spec without one.

Exit status: 0 done (also after SIGTERM or Ctrl-C), 1 failed, 2 refused: options, spec or data directory are at fault.
"""

from __future__ import annotations

import enum
import fcntl
import gc
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import uvicorn
from pydantic import ValidationError

from creditgrid.core.errors import ConflictError, CreditGridError
from creditgrid.core.files import atomic_file
from creditgrid.core.spec.text import parse_text
from creditgrid.core.wire import MAX_SPEC_BYTES, PlanView
from creditgrid.service import wiring
from creditgrid.service.api.app import create_app
from creditgrid.service.api.problems import problem, problem_from_error
from creditgrid.service.logging import configure_logging
from creditgrid.service.settings import Settings

REFUSED = 2

cli = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


class Shown(enum.StrEnum):
    """Forms of a printed plan."""

    JSON = "json"
    TEXT = "text"


DataDir = Annotated[Path | None, typer.Option(help="Where ledger, artifacts and results lie.  [creditgrid-data]")]


@cli.command()
def serve(
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks a free one.  [8000]")] = None,
    port_file: Annotated[Path | None, typer.Option(help="The URL is written here once it can be used.")] = None,
    data_dir: DataDir = None,
    ray_address: Annotated[str | None, typer.Option(help="A running Ray cluster to join.  [start one here]")] = None,
    runner: Annotated[str | None, typer.Option(help="ray, or local: threads of this process.  [ray]")] = None,
    token: Annotated[str | None, typer.Option(help="API token; others see it in the list of processes.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="A file that holds the API token.")] = None,
    cpus: Annotated[int | None, typer.Option(help="CPUs to use of this machine.  [all]")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs to use of this machine.  [all]")] = None,
    log_format: Annotated[str | None, typer.Option(help="auto, json or console.  [auto]")] = None,
) -> None:
    """Run the service. Every option can be given as CREDITGRID_…, such as CREDITGRID_DATA_DIR."""
    settings = _settings(
        host=host,
        port=port,
        data_dir=data_dir,
        ray_address=ray_address,
        runner=runner,
        token=token if token_file is None else _read_token(token_file),
        cpus=cpus,
        gpus=gpus,
        log_format=log_format,
    )
    configure_logging(settings.log_format)
    # uvicorn raises the signal that stopped it once more when it is through; here that means: exit, and well.
    signal.signal(signal.SIGTERM, _leave)
    try:
        with _alone_in(settings.data_dir):
            _serve(settings, port_file)
    except KeyboardInterrupt:
        _leave()


@cli.command()
def plan(
    spec_file: Annotated[str, typer.Argument(metavar="SPEC_FILE", help="YAML or JSON; - reads standard input.")],
    output: Annotated[Shown, typer.Option("--output", "-o", help="How the plan is printed.")] = Shown.JSON,
    data_dir: DataDir = None,
) -> None:
    """Print what a sweep would run. Nothing is written; a spec that is refused prints a problem document, status 2."""
    settings = _settings(data_dir=data_dir)
    try:
        document = parse_text(_read(spec_file))
        view = wiring.planner(settings).plan(document)
    except CreditGridError as error:
        found = problem_from_error(error)
        typer.echo(found.model_dump_json(indent=2, exclude_none=True))
        raise typer.Exit(REFUSED if found.status == 422 else 1) from error
    except OSError as error:
        typer.echo(problem(422, f"{spec_file} cannot be read: {error.strerror or error}").model_dump_json(indent=2))
        raise typer.Exit(REFUSED) from error
    typer.echo(view.model_dump_json(indent=2) if output is Shown.JSON else _as_text(view))


def _serve(settings: Settings, port_file: Path | None) -> None:
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        _refuse(f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}; choose another --port")
    try:
        app = create_app(wiring.create_services(settings), settings)
    except CreditGridError as error:
        listener.close()
        typer.echo(f"creditgrid: {error}", err=True)
        raise typer.Exit(REFUSED if isinstance(error, ConflictError) else 1) from error
    url = _url(settings.host, listener.getsockname()[1])
    # What is loaded by now stays: the collector need not walk through it again for every few thousand cells of a plan.
    gc.freeze()

    def announce() -> None:
        if port_file is not None:
            with atomic_file(port_file) as file:
                file.write(url.encode())
        typer.echo(f"CreditGrid is at {url} (API: {url}/docs, data: {settings.data_dir}). Ctrl-C stops it.")

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=max(1, math.ceil(settings.grace_s)),
    )
    server = _Server(config, announce, app.state.context.stopping.set)
    try:
        server.run(sockets=[listener])
    except SystemExit as error:
        raise typer.Exit(1 if error.code else 0) from error  # uvicorn has logged why it could not start
    finally:
        gc.unfreeze()  # else what is frozen outlives its modules, and DuckDB complains of leaks at the exit


class _Server(uvicorn.Server):
    """uvicorn, telling when it listens and when it begins to stop."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None], stopping: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started, self._on_stopping = started, stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stopping()  # event streams end by themselves, else their connections would be waited for
        await super().shutdown(sockets)


@contextmanager
def _alone_in(data_dir: Path) -> Iterator[None]:
    """Hold the data directory: two schedulers over one ledger would each think they own it."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "lock").open("a+")
    except OSError as error:
        _refuse(f"the data directory {data_dir} cannot be used: {error.strerror or error}")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            _refuse(
                f"the data directory {data_dir} is in use by the service with process id {owner}: "
                "stop that one, or use another --data-dir"
            )
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _settings(**given: Any) -> Settings:
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}".removeprefix(": ") for item in error.errors()]
        _refuse("; ".join(line.replace("Value error, ", "") for line in lines))


def _read_token(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        _refuse(f"the token file {path} cannot be read: {error}")


def _read(spec_file: str) -> bytes:
    if spec_file == "-":
        return sys.stdin.buffer.read(MAX_SPEC_BYTES + 1)
    with Path(spec_file).open("rb") as file:
        return file.read(MAX_SPEC_BYTES + 1)


def _listen(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=2048)


def _url(host: str, port: int) -> str:
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        return f"http://{host}:{port}"
    if address.is_unspecified:  # "all addresses" is none that can be connected to
        return f"http://{'127.0.0.1' if address.version == 4 else '[::1]'}:{port}"
    return f"http://{address}:{port}" if address.version == 4 else f"http://[{address}]:{port}"


def _as_text(view: PlanView) -> str:
    rows = [("cells", view.cells), *view.tasks.items()]
    counts = [
        f"{name:>12}  {k.total:>9,}  new {k.new:>9,}  cached {k.cached:>9,}  calls {k.calls:>7,}" for name, k in rows
    ]
    return "\n".join([f"{view.name} ({view.experiment})", *counts])


def _leave(*_: object) -> NoReturn:
    raise SystemExit(0)


def _refuse(message: str) -> NoReturn:
    typer.echo(f"creditgrid: {message}", err=True)
    raise typer.Exit(REFUSED)
