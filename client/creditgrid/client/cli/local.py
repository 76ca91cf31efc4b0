"""Commands that use this machine's installation: the service, a run without one, and dry runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Literal

import typer

from creditgrid.client.cli.options import (
    CodeOption,
    DataDir,
    OutputOption,
    SpecArgument,
    Token,
    Url,
    emit,
    note,
    open_client,
)
from creditgrid.core.states import RESULT


def serve(context: typer.Context) -> None:
    """Start the service, by default on 127.0.0.1:8000; options: creditgrid serve --help."""
    from creditgrid.client.local_service import SERVICE, require_server

    require_server()
    sys.stdout.flush()
    # Replaces this process, so that signals and the exit code are the service's own.
    os.execv(SERVICE[0], [*SERVICE, "serve", *context.args])


def run(
    spec: SpecArgument,
    code: CodeOption = None,
    data_dir: DataDir = None,
    runner: Annotated[
        Literal["ray", "local"] | None, typer.Option(help="ray, or local: threads of the service. Default: ray.")
    ] = None,
    output: OutputOption = "table",
) -> None:
    """Run a sweep without a service: one is started for it, and stopped afterwards."""
    from creditgrid.client.display import progress
    from creditgrid.client.display.tables import summary_table
    from creditgrid.client.local_service import LocalService, ended_by_signals, require_server
    from creditgrid.client.spec import spec_document

    document = spec_document(spec)
    require_server()
    arguments = [*(["--data-dir", str(data_dir)] if data_dir else []), *(["--runner", runner] if runner else [])]
    if code is not None or document.get("code") is not None:
        arguments.append("--allow-code")  # it is that of the person who runs it
    note("starting a service for this run …")
    with ended_by_signals(), LocalService(*arguments) as service, open_client(service.url, None) as client:
        sweep = client.submit(document, code)
        note(f"running {sweep.view.name}: {sweep.view.cells:,} cells, sweep {sweep.id}")
        try:
            # Nobody would start this service again, so it is not waited for.
            progress.show(sweep.view, sweep.updates(patient=False), service.url, detachable=False)
        except KeyboardInterrupt:
            note("stopping; finished results are kept: run it again to continue")
            raise
        summary = sweep.summary()
        emit(output, summary, summary_table(summary))
        if sweep.state not in RESULT:
            note(progress.failed_text(sweep.view, sweep.failures(), url=None))
            raise typer.Exit(1)


def plan(
    spec: SpecArgument,
    *,
    code: CodeOption = None,
    data_dir: DataDir = None,
    url: Url = None,
    token: Token = None,
    output: OutputOption = "table",
) -> None:
    """Show what a sweep would compute and what exists already; needs a service only with --url."""
    from creditgrid.client.display.tables import plan_table
    from creditgrid.client.local_service import plan_locally
    from creditgrid.client.spec import spec_document

    document = spec_document(spec)
    if url:
        with open_client(url, token) as client:
            view = client.plan(document, code)
    else:
        view = plan_locally(document, data_dir, code)
    emit(output, view, plan_table(view))
