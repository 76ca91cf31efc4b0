"""The command that writes a sweep's charts."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from creditgrid.client.cli.options import SweepArgument, Token, Url, open_client
from creditgrid.client.errors import BadSetting


class ImageOutput(enum.StrEnum):
    """How a chart is written."""

    PNG = "png"
    SVG = "svg"
    PDF = "pdf"
    HTML = "html"


def plot(
    sweep: SweepArgument,
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="The folder to write to.")] = Path(),
    format: Annotated[ImageOutput, typer.Option("--format", help="HTML works without a network.")] = ImageOutput.PNG,
    chart: Annotated[str | None, typer.Option("--chart", metavar="NAME", help="Only this chart.")] = None,
    *,
    fix: Annotated[
        list[str] | None,
        typer.Option("--fix", metavar="NAME=VALUE", help="Only rows with this value; may be repeated."),
    ] = None,
    url: Url = None,
    token: Token = None,
) -> None:
    """Draw a sweep's charts. Prints the written files, one per line."""
    wanted = dict(_pair(text) for text in fix or ())
    with open_client(url, token) as client:
        for file in client.sweep(sweep).plot(out, format.value, chart, wanted):
            typer.echo(file)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise BadSetting(f"--fix {text}: give NAME=VALUE, such as norm_mode=raw")
    return name, value
