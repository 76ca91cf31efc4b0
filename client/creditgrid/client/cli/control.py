"""Commands that change what becomes of a sweep; each says in one line what is now so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from creditgrid.client.cli.options import Output, OutputOption, SweepArgument, Token, Url, emit, open_client
from creditgrid.core.states import OPEN, RESULT, State

if TYPE_CHECKING:
    from creditgrid.client.sweep import Sweep

Axis = Annotated[
    list[str] | None,
    typer.Option(
        "--axis",
        metavar="NAME=VALUES",
        help="Further values of an axis, as in YAML: eta=0.1,0.3 or 'eta={logspace: [1e-5, 1e-2, 4]}'.",
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option("--include", metavar="CELL", help="A further cell, as in YAML or JSON: '{method: vec, eta: 0.1}'."),
]
More = Annotated[
    str | None, typer.Option("--file", metavar="FILE", help="YAML or JSON with axes and include; - is standard input.")
]


def cancel(sweep: SweepArgument, url: Url = None, token: Token = None, output: OutputOption = Output.TABLE) -> None:
    """Cancel a sweep: what is finished stays."""
    with open_client(url, token) as client:
        found = client.sweep(sweep).cancel()
    _tell(output, found, f"{_count(found, *RESULT):,} of {found.view.cells:,} cells have their results, and keep them")


def pause(sweep: SweepArgument, url: Url = None, token: Token = None, output: OutputOption = Output.TABLE) -> None:
    """Begin nothing more of a sweep until it is resumed: what runs, ends."""
    with open_client(url, token) as client:
        found = client.sweep(sweep).pause()
    _tell(output, found, f"what runs, ends; {_count(found, *OPEN):,} of {found.view.cells:,} cells are open")


def resume(sweep: SweepArgument, url: Url = None, token: Token = None, output: OutputOption = Output.TABLE) -> None:
    """Go on with a paused sweep."""
    with open_client(url, token) as client:
        found = client.sweep(sweep).resume()
    _tell(output, found, f"{_count(found, *OPEN):,} of {found.view.cells:,} cells are open")


def retry(sweep: SweepArgument, url: Url = None, token: Token = None, output: OutputOption = Output.TABLE) -> None:
    """Run again what failed or was skipped, and what a sweep had not got to that stopped at its failures."""
    with open_client(url, token) as client:
        found = client.sweep(sweep).retry()
    _tell(output, found, f"{_count(found, *OPEN):,} of {found.view.cells:,} cells to run")


def extend(
    sweep: SweepArgument,
    *,
    axis: Axis = None,
    include: Include = None,
    file: More = None,
    url: Url = None,
    token: Token = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Add cells to a sweep, by more values of its axes or one by one; those that it has are not touched."""
    from creditgrid.client.cli.extension import extension

    axes, further = extension(axis or (), include or (), file)
    with open_client(url, token) as client:
        found = client.sweep(sweep)
        before = found.view.cells
        found.extend(axes, further)
    cells, opened = found.view.cells, _count(found, *OPEN)
    _tell(output, found, f"{cells - before:,} cells more make {cells:,}, {opened:,} of them open")


def _tell(output: Output, sweep: Sweep, news: str) -> None:
    view = sweep.view
    standing = "paused" if view.paused and not view.state.finished else view.state.value
    told = f": {news}" if sweep.unchanged is None else f"; {sweep.unchanged}"
    emit(output, view, f"sweep {view.id} is {standing}{told}")


def _count(sweep: Sweep, *states: State) -> int:
    return sum(sweep.view.counts.get(state, 0) for state in states)
