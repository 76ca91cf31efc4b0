"""Commands about results, charts, artifacts and experiments on a service."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from creditgrid.client.cli.options import (
    OutputOption,
    SweepArgument,
    Token,
    Url,
    console,
    emit,
    note,
    open_client,
    print_json,
    write_bytes,
)
from creditgrid.client.errors import BadSetting
from creditgrid.client.plots import ImageFormat


def sql(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="A SELECT; - reads it from standard input.")],
    file: Annotated[
        Path | None,
        typer.Option("--file", dir_okay=False, help="Write the rows to this file."),
    ] = None,
    url: Url = None,
    token: Token = None,
    output: Annotated[
        Literal["table", "json", "csv", "parquet", "arrow"] | None,
        typer.Option("--output", "-o", help="Default: a table, or the format of the file's ending."),
    ] = None,
) -> None:
    """Query the tables `results` and `curves` and the views `cells`, `stages` and `sweeps` with SQL."""
    from creditgrid.client.display.tables import rows_table
    from creditgrid.client.sweep import file_format

    text = sys.stdin.read() if query == "-" else query
    if file is not None and output == "table":
        raise BadSetting("a table is for the terminal: write csv, json, parquet or arrow to a file")
    format = output or "table" if file is None else file_format(file, output)
    if format in ("parquet", "arrow") and file is None and sys.stdout.isatty():
        raise BadSetting(f"{format} is not for a terminal: give a file with --file, or redirect it with > or |")
    with open_client(url, token) as client:
        if format == "table":
            console().print(rows_table(client.query(text)))
        else:
            write_bytes(client.query_bytes(text, format), file)


def export(
    sweep: SweepArgument,
    file: Annotated[Path, typer.Option("--file", dir_okay=False, help="results.parquet, .csv, .arrow or .json.")],
    url: Url = None,
    token: Token = None,
) -> None:
    """Write a sweep's rows to a file."""
    from creditgrid.client.sweep import file_format

    file_format(file, None)  # before any request
    with open_client(url, token) as client:
        client.sweep(sweep).export(file)
    note(f"wrote {file} ({file.stat().st_size:,} bytes)")


def curves(
    sweep: SweepArgument,
    file: Annotated[Path, typer.Option("--file", dir_okay=False, help="curves.parquet, .csv, .arrow or .json.")],
    url: Url = None,
    token: Token = None,
) -> None:
    """Write what a sweep's runs measure at each epoch to a file."""
    from creditgrid.client.sweep import file_format

    file_format(file, None)  # before any request
    with open_client(url, token) as client:
        client.sweep(sweep).export_curves(file)
    note(f"wrote {file} ({file.stat().st_size:,} bytes)")


def plot(
    sweep: SweepArgument,
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="The folder to write to.")] = Path(),
    format: Annotated[ImageFormat, typer.Option("--format", help="HTML works without a network.")] = "png",
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
        for file in client.sweep(sweep).plot(out, format, chart, wanted):
            typer.echo(file)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise BadSetting(f"--fix {text}: give NAME=VALUE, such as norm_mode=raw")
    return name, value


def artifact(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The artifact's key.")],
    file: Annotated[
        Path | None, typer.Option("--file", dir_okay=False, help="Write its tensors to this file, as safetensors.")
    ] = None,
    url: Url = None,
    token: Token = None,
) -> None:
    """Print an artifact's record as JSON, or write its tensors to a file."""
    with open_client(url, token) as client:
        if file is None:
            print_json(client.artifact_record(key))
            return
        client.download_artifact(key, file)
    note(f"wrote {file} ({file.stat().st_size:,} bytes)")


def code(
    sha256: Annotated[str, typer.Argument(metavar="SHA256", help="Of the code: `creditgrid show ID` prints it.")],
    folder: Annotated[
        Path | None, typer.Option("--folder", file_okay=False, help="Write its files into this folder.")
    ] = None,
    url: Url = None,
    token: Token = None,
    output: OutputOption = "table",
) -> None:
    """Show code that was sent with a sweep: its files and its units; or write its files into a folder."""
    from creditgrid.client.display.tables import code_view

    with open_client(url, token) as client:
        if folder is None:
            view = client.code(sha256)
            emit(output, view, code_view(view))
            return
        for file in client.download_code(sha256, folder):
            typer.echo(file)


def import_checkpoint(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.pt", help="Written by torch.save(model.state_dict(), FILE.pt).")
    ],
    url: Url = None,
    token: Token = None,
    output: OutputOption = "table",
) -> None:
    """Import a checkpoint that another program trained. Prints its name."""
    with open_client(url, token) as client:
        view = client.import_checkpoint(file)
    if output == "json":
        print_json(view)
        return
    typer.echo(view.name)
    note("in a spec it replaces training:")
    note(f"fixed: {{checkpoint: {view.name}, num_blocks: {view.num_blocks}, d_hidden: {view.d_hidden}}}")


def experiments(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show the parameters and columns of one.")] = None,
    *,
    code: Annotated[
        str | None, typer.Option("--code", metavar="SHA256", help="With the units of code that was sent.")
    ] = None,
    url: Url = None,
    token: Token = None,
    output: OutputOption = "table",
) -> None:
    """List the service's experiments, or describe one."""
    from creditgrid.client.display.tables import experiment_view, experiments_table

    with open_client(url, token) as client:
        if name is None:
            views = client.experiments()
            emit(output, views, experiments_table(views))
        else:
            view = client.experiment(name, code)
            emit(output, view, experiment_view(view))
