"""The options that commands share, their client, and their output."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer
from rich.console import Console, RenderableType

from creditgrid.core.files import atomic_file

if TYPE_CHECKING:
    from pydantic import BaseModel

    from creditgrid.client.client import Client


Output: TypeAlias = Literal["table", "json"]
Url = Annotated[
    str | None,
    typer.Option(
        "--url", envvar="CREDITGRID_URL", metavar="URL", help="The service's URL, if not http://127.0.0.1:8000."
    ),
]
Token = Annotated[
    str | None,
    typer.Option("--token", envvar="CREDITGRID_TOKEN", metavar="TOKEN", help="Its API token, if it needs one."),
]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="A table, or JSON for a program.")]
SpecArgument = Annotated[
    str, typer.Argument(metavar="SPEC", help="A sweep spec in YAML or JSON; - reads it from standard input.")
]
CodeOption = Annotated[
    Path | None,
    typer.Option("--code", metavar="FILE", help="A Python file or folder with units that the spec chooses."),
]
SweepArgument = Annotated[str, typer.Argument(metavar="ID", help="The sweep's id.")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        file_okay=False,
        help="Folder of the ledger, artifacts and results. Default: creditgrid-data, or $CREDITGRID_DATA_DIR.",
    ),
]


def open_client(url: str | None, token: str | None) -> Client:
    """The client for a command's options."""
    # Imported only by commands that need it, because help needs no HTTP.
    from creditgrid.client.client import Client

    return Client(url, token)


def console() -> Console:
    """Standard output for tables; a file or a pipe has more than 80 columns."""
    width = None if sys.stdout.isatty() else 500
    return Console(width=width, highlight=False, markup=False, emoji=False)


def note(message: str) -> None:
    """Print a message for a person, on standard error."""
    Console(stderr=True, highlight=False, markup=False, emoji=False).print(message, soft_wrap=True)


def emit(output: Output, models: BaseModel | Sequence[BaseModel], table: RenderableType) -> None:
    """Print ``models`` as JSON or ``table``."""
    if output == "table":
        console().print(table)
    else:
        print_json(models)


def print_json(value: object) -> None:
    """Print a JSON document and nothing else."""
    sys.stdout.write(json_text(value))


def json_text(value: object) -> str:
    """A JSON document with models and times as strings and mappings."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value.model_dump(mode="json")


def write_bytes(data: bytes, file: Path | None) -> None:
    """Write to ``file``, or to standard output."""
    if file is not None:
        with atomic_file(file) as target:
            target.write(data)
        note(f"wrote {file} ({len(data):,} bytes)")
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
