"""Commands that control a sweep; each prints the new state in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from creditgrid.client.cli.options import Output, OutputOption, SweepArgument, Token, Url, emit, open_client
from creditgrid.core.states import OPEN, RESULT, State

if TYPE_CHECKING:
    from creditgrid.client.sweep import Sweep

AxisOption = Annotated[
    list[str] | None,
    typer.Option(
        "--axis",
        metavar="NAME=VALUES",
        help="More values of an axis, as in YAML: eta=0.1,0.3 or 'eta={logspace: [1e-5, 1e-2, 4]}'.",
    ),
]
IncludeOption = Annotated[
    list[str] | None,
    typer.Option("--include", metavar="CELL", help="One more cell, as in YAML or JSON: '{method: vec, eta: 0.1}'."),
]
FileOption = Annotated[
    str | None, typer.Option("--file", metavar="FILE", help="YAML or JSON with axes and include; - is standard input.")
]


def cancel(sweep: SweepArgument, url: Url = None, token: Token = None, output: OutputOption = "table") -> None:
    """Cancel a sweep; finished cells keep their results."""
    with open_client(url, token) as client:
        found = client.sweep(sweep).cancel()
    _emit(output, found, f"{_count(found, *RESULT):,} of {found.view.cells:,} cells have results, which are kept")


def pause(sweep: SweepArgument, url: Url = None, token: Token = None, output: OutputOption = "table") -> None:
    """Start no more calls of a sweep until it is resumed; running calls finish."""
    with open_client(url, token) as client:
        found = client.sweep(sweep).pause()
    _emit(output, found, f"running calls finish; {_count(found, *OPEN):,} of {found.view.cells:,} cells are open")


def resume(sweep: SweepArgument, url: Url = None, token: Token = None, output: OutputOption = "table") -> None:
    """Continue a paused sweep."""
    with open_client(url, token) as client:
        found = client.sweep(sweep).resume()
    _emit(output, found, f"{_count(found, *OPEN):,} of {found.view.cells:,} cells are open")


def retry(sweep: SweepArgument, url: Url = None, token: Token = None, output: OutputOption = "table") -> None:
    """Run failed and skipped cells again, and those that were not run because the sweep stopped at its failures."""
    with open_client(url, token) as client:
        found = client.sweep(sweep).retry()
    _emit(output, found, f"{_count(found, *OPEN):,} of {found.view.cells:,} cells to run")


def extend(
    sweep: SweepArgument,
    *,
    axis: AxisOption = None,
    include: IncludeOption = None,
    file: FileOption = None,
    url: Url = None,
    token: Token = None,
    output: OutputOption = "table",
) -> None:
    """Add cells to a sweep, by more values of its axes or one by one; its present cells do not change."""
    from creditgrid.client.cli.extension import extension

    axes, cells = extension(axis or (), include or (), file)
    with open_client(url, token) as client:
        found = client.sweep(sweep)
        before = found.view.cells
        found.extend(axes, cells)
    total = found.view.cells
    _emit(output, found, f"{total - before:,} cells added, {total:,} in total, {_count(found, *OPEN):,} of them open")


def _emit(output: Output, sweep: Sweep, change: str) -> None:
    view = sweep.view
    state = "paused" if view.paused and not view.state.finished else view.state.value
    result = f": {change}" if sweep.unchanged is None else f"; {sweep.unchanged}"
    emit(output, view, f"sweep {view.id} is {state}{result}")


def _count(sweep: Sweep, *states: State) -> int:
    return sum(sweep.view.counts.get(state, 0) for state in states)
