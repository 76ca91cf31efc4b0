"""The command that computes one task of a service on this machine."""

from __future__ import annotations

import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from creditgrid.client.cli.options import Output, OutputOption, Token, Url, console, note, open_client, print_json
from creditgrid.client.errors import BadSetting

if TYPE_CHECKING:
    from creditgrid.client.local_task import TaskRun

PROGRESS_S = 2.0
"""Seconds between lines of progress."""


def run_task(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The key of a stage or a cell.")],
    *,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="The device that computes it.")] = "cpu",
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="DIR", file_okay=False, help="Keep the inputs and results in this folder."),
    ] = None,
    with_parents: Annotated[
        bool, typer.Option("--with-parents", help="First compute the inputs that the service does not have.")
    ] = False,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Execute code that was sent with the sweep, too.")
    ] = False,
    url: Url = None,
    token: Token = None,
    output: OutputOption = "table",
) -> None:
    """Compute one task of a sweep on this machine, and show its rows, its tensors or its traceback."""
    from creditgrid.client.local_service import ended_by_signals
    from creditgrid.client.local_task import compute_task

    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise BadSetting(f"--keep {keep}: the folder is not empty; give another one")
    folder: AbstractContextManager[str] = (
        nullcontext(str(keep)) if keep is not None else tempfile.TemporaryDirectory(prefix="creditgrid-")
    )
    with ended_by_signals(), folder as name, open_client(url, token) as client:
        try:
            run = compute_task(
                client,
                key,
                Path(name),
                device=device,
                with_parents=with_parents,
                allow_code=allow_code,
                on_progress=_Progress(),
            )
        except KeyboardInterrupt:
            note("stopped")
            raise
        _show(run, output, kept=keep is not None)
    if keep is not None:
        note(f"kept in {keep}")
    if run.error is not None:
        raise typer.Exit(1)


class _Progress:
    """Prints a line of progress now and then."""

    def __init__(self) -> None:
        self._printed_at = -PROGRESS_S

    def __call__(self, line: str) -> None:
        if time.monotonic() - self._printed_at >= PROGRESS_S:
            note(line)
            self._printed_at = time.monotonic()


def _show(run: TaskRun, output: Output, *, kept: bool) -> None:
    from creditgrid.client.display.quantities import duration
    from creditgrid.client.display.tables import task_rows_table, tensors_table

    if output == "json":
        print_json(
            {
                "task": run.task,
                "seconds": run.seconds,
                "device": run.device,
                "rows": None if run.rows is None else run.rows.to_pylist(),
                "artifact": str(run.artifact) if run.artifact is not None and kept else None,
                "tensors": run.tensors,
                "error": run.error,
                "traceback": run.traceback,
            }
        )
    elif run.error is not None:
        console().print(run.traceback.rstrip(), soft_wrap=True)
    elif run.rows is not None:
        console().print(task_rows_table(run.rows, run.task))
    else:
        assert run.tensors is not None
        console().print(tensors_table(run.tensors))
    if run.error is not None:
        note(f"{run.kind} {run.key} failed: {run.error}")
        return
    assert run.seconds is not None
    note(f"{run.kind} took {duration(run.seconds)} on {run.device}")
    if kept and run.artifact is not None:
        note(f"its artifact: {run.artifact}")
