"""Commands about sweeps on a service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from creditgrid.client.cli.options import (
    CodeOption,
    Output,
    OutputOption,
    SpecArgument,
    SweepArgument,
    Token,
    Url,
    console,
    emit,
    note,
    open_client,
    print_json,
)
from creditgrid.core.states import RESULT, State

if TYPE_CHECKING:
    from creditgrid.client.sweep import Sweep


def submit(
    spec: SpecArgument,
    *,
    code: CodeOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show its progress until it is finished.")] = False,
    url: Url = None,
    token: Token = None,
    output: OutputOption = "table",
) -> None:
    """Submit a sweep. Prints its id."""
    from creditgrid.client.display.progress import watch_command

    with open_client(url, token) as client:
        sweep = client.submit(spec, code)
        note(f"submitted {sweep.view.name}: {sweep.view.cells:,} cells")
        if output == "table":
            typer.echo(sweep.id)
        if watch:
            _watch(sweep, client.url, output)
        elif output == "json":
            print_json(sweep.view)
        else:
            note(f"watch it with: {watch_command(sweep.view, client.url)}")


def ls(
    *,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 20,
    state: Annotated[State | None, typer.Option(help="Only sweeps in this state.")] = None,
    owner: Annotated[str | None, typer.Option(metavar="NAME", help="Only sweeps of this person.")] = None,
    url: Url = None,
    token: Token = None,
    output: OutputOption = "table",
) -> None:
    """List sweeps, the newest first."""
    from creditgrid.client.display.tables import sweeps_table

    with open_client(url, token) as client:
        views = [sweep.view for sweep in client.sweeps(state=state, limit=limit, owner=owner)]
    emit(output, views, sweeps_table(views))


def show(sweep: SweepArgument, url: Url = None, token: Token = None, output: OutputOption = "table") -> None:
    """Show a sweep's state, its summary and its failures."""
    from creditgrid.client.connection import url_option
    from creditgrid.client.display.tables import failures_text, summary_table, sweep_view

    with open_client(url, token) as client:
        found = client.sweep(sweep)
        summary, failures, option = found.summary(), found.failures(), url_option(client.url)
    if output == "json":
        print_json({"sweep": found.view, "summary": summary, "failures": failures})
        return
    out = console()
    out.print(sweep_view(found.view))
    if summary.rows:
        out.print()
        out.print(summary_table(summary))
    if failures:
        out.print()
        out.print(failures_text(failures, tracebacks=False, option=option))
        note(f"tracebacks and all output: creditgrid logs {found.id}{option}")


def watch(sweep: SweepArgument, url: Url = None, token: Token = None, output: OutputOption = "table") -> None:
    """Show a sweep's progress until it is finished. Ctrl-C stops the display, not the sweep."""
    with open_client(url, token) as client:
        _watch(client.sweep(sweep), client.url, output)


def _watch(sweep: Sweep, url: str, output: Output) -> None:
    from creditgrid.client.display import progress

    view = progress.show(sweep.view, sweep.updates(), url)
    if output == "json":
        print_json(view)
    if view.state not in RESULT:
        note(progress.failed_text(view, sweep.failures(), url))
        raise typer.Exit(1)
