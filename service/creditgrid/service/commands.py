"""The commands: ``serve`` runs the service; ``plan`` prints the plan of a spec, without a service.

Exit status: 0 success (also after SIGTERM or Ctrl-C), 1 failure, 2 a fault of the options, the spec or the data
directory.
"""

from __future__ import annotations

import enum
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import structlog
import typer
from pydantic import ValidationError

from creditgrid.core.errors import ConflictError, CreditGridError
from creditgrid.core.files import atomic_file
from creditgrid.core.spec.text import SpecText
from creditgrid.core.units.code import read as read_code
from creditgrid.core.wire import MAX_SPEC_BYTES, PlanView
from creditgrid.service import server, services
from creditgrid.service.api.problems import problem, problem_from_error
from creditgrid.service.logging import configure_logging
from creditgrid.service.planning.plans import nobody_stops
from creditgrid.service.private_files import close_to_others
from creditgrid.service.settings import Settings

REFUSED = 2

log = structlog.get_logger()

cli = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


class PlanFormat(enum.StrEnum):
    """Formats of a printed plan."""

    JSON = "json"
    TEXT = "text"


DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the ledger, artifacts and results. Default: creditgrid-data.")
]


@cli.command()
def serve(
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks a free one. Default: 8000.")] = None,
    port_file: Annotated[Path | None, typer.Option(help="File to write the URL to when the service is ready.")] = None,
    data_dir: DataDir = None,
    ray_address: Annotated[
        str | None, typer.Option(help="A running Ray cluster to join. Default: start one here.")
    ] = None,
    runner: Annotated[str | None, typer.Option(help="ray, or local: threads of this process. Default: ray.")] = None,
    token: Annotated[str | None, typer.Option(help="API token; other users see it in the list of processes.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="A file that holds the API token.")] = None,
    max_open_cells: Annotated[
        int | None, typer.Option(help="Open cells of one person, without an own limit of their token. Default: any.")
    ] = None,
    max_priority: Annotated[
        int | None, typer.Option(help="Highest priority, without an own limit of the token. Default: any.")
    ] = None,
    dataset_root: Annotated[
        list[Path] | None,
        typer.Option(help="A folder that dataset paths must be in; may be repeated. Default: any on loopback."),
    ] = None,
    allow_code: Annotated[
        bool | None,
        typer.Option("--allow-code", help="Take methods, rules, … as code with sweeps; it runs as your user."),
    ] = None,
    cpus: Annotated[int | None, typer.Option(help="CPUs of this machine to use. Default: all.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of this machine to use. Default: all.")] = None,
    log_format: Annotated[str | None, typer.Option(help="auto, json or console. Default: auto.")] = None,
) -> None:
    """Run the service. An environment variable CREDITGRID_… can set each option, such as CREDITGRID_DATA_DIR."""
    settings = _settings(
        host=host,
        port=port,
        data_dir=data_dir,
        ray_address=ray_address,
        runner=runner,
        token=token if token_file is None else _read_token(token_file),
        max_open_cells=max_open_cells,
        max_priority=max_priority,
        dataset_roots=dataset_root or None,
        allow_code=allow_code,
        cpus=cpus,
        gpus=gpus,
        log_format=log_format,
    )
    configure_logging(settings.log_format)
    if token_file is not None:
        _close_token(token_file)

    def announce(url: str) -> None:
        if port_file is not None:
            with atomic_file(port_file) as file:
                file.write(url.encode())
        typer.echo(f"CreditGrid listens on {url} (API: {url}/docs, data: {settings.data_dir}). Ctrl-C stops it.")

    # uvicorn raises the signal that stopped it again after its shutdown, which is then a normal exit.
    signal.signal(signal.SIGTERM, _exit)
    try:
        server.serve(settings, announce)
    except KeyboardInterrupt:
        _exit()
    except CreditGridError as error:
        _fail(str(error), REFUSED if isinstance(error, ConflictError) else 1)
    except SystemExit as error:
        raise typer.Exit(1 if error.code else 0) from error


@cli.command()
def plan(
    spec_file: Annotated[str, typer.Argument(metavar="SPEC_FILE", help="YAML or JSON; - reads standard input.")],
    output: Annotated[PlanFormat, typer.Option("--output", "-o", help="Format of the plan.")] = PlanFormat.JSON,
    data_dir: DataDir = None,
    code: Annotated[
        Path | None, typer.Option(help="A file or folder with the code that the spec names by its SHA-256.")
    ] = None,
) -> None:
    """Print what a sweep would run, and write nothing. For a bad spec: a problem document and exit status 2."""
    settings = _settings(data_dir=data_dir)
    try:
        text = SpecText(_read(spec_file), yaml=True)
        files = None if code is None else read_code(code)
        view = services.create_planner(settings, files).plan(text, nobody_stops, lambda _: None)
    except CreditGridError as error:
        found = problem_from_error(error)
        typer.echo(found.model_dump_json(indent=2, exclude_none=True))
        raise typer.Exit(REFUSED if found.status == 422 else 1) from error
    except OSError as error:
        typer.echo(problem(422, f"{spec_file} cannot be read: {error.strerror or error}").model_dump_json(indent=2))
        raise typer.Exit(REFUSED) from error
    typer.echo(view.model_dump_json(indent=2) if output is PlanFormat.JSON else _as_text(view))


def _settings(**given: Any) -> Settings:
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}".removeprefix(": ") for item in error.errors()]
        _fail("; ".join(line.replace("Value error, ", "") for line in lines), REFUSED)


def _read_token(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        _fail(f"the token file {path} cannot be read: {error}", REFUSED)


def _close_token(path: Path) -> None:
    try:
        if close_to_others(path):
            log.warning("other users could read the token file; now they cannot", path=str(path))
    except OSError as error:  # such as a secret that a container has read-only
        log.warning("other users can read the token file", path=str(path), reason=str(error))


def _read(spec_file: str) -> bytes:
    if spec_file == "-":
        return sys.stdin.buffer.read(MAX_SPEC_BYTES + 1)
    with Path(spec_file).open("rb") as file:
        return file.read(MAX_SPEC_BYTES + 1)


def _as_text(view: PlanView) -> str:
    rows = [("cells", view.cells), *view.tasks.items()]
    counts = [
        f"{name:>12}  {k.total:>9,}  new {k.new:>9,}  cached {k.cached:>9,}  calls {k.calls:>7,}" for name, k in rows
    ]
    time = "unknown" if view.estimated_seconds is None else f"{view.estimated_seconds:,.0f} s on {view.cpus:g} CPUs"
    size = "unknown" if view.estimated_bytes is None else f"{view.estimated_bytes:,} bytes"
    return "\n".join([f"{view.name} ({view.experiment})", *counts, f"time: {time}; new artifacts: {size}", *view.notes])


def _exit(*_: object) -> NoReturn:
    raise SystemExit(0)


def _fail(message: str, status: int) -> NoReturn:
    typer.echo(f"creditgrid: {message}", err=True)
    raise typer.Exit(status)
