"""The command that runs the published settings and compares the results with the published figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from creditgrid.client.cli.options import Token, Url, console, json_text, note, open_client, print_json, write_bytes
from creditgrid.client.errors import BadSetting
from creditgrid.core.errors import CreditGridError

if TYPE_CHECKING:
    from creditgrid.client.client import Client
    from creditgrid.client.reproduce.report import Settings
    from creditgrid.client.sweep import Sweep


def reproduce(
    *,
    epochs: Annotated[
        int, typer.Option(metavar="N", help="Epochs of training; fits and checkpoints are scaled in proportion.")
    ] = 100,
    fit_epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Epochs of every fit. Default: in proportion to --epochs.")
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="K", help="Seeds 42 … 41 + K.")] = 1,
    dataset: Annotated[
        str, typer.Option(metavar="NAME|FOLDER", help="A dataset's name, or a folder of Parquet files.")
    ] = "cifar10",
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EXPERIMENT",
            help="linesearch, exploitability, credit_recovery or snapshot_time; may be repeated.",
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", dir_okay=False, help="Also write the report here, as JSON."),
    ] = None,
    url: Url = None,
    token: Token = None,
) -> None:
    """Run the published settings, and print our figures beside the published ones.

    Needs a service. Existing results are not computed again. Fails if a result is missing, not if figures disagree.
    """
    # Imported here, because help needs no YAML.
    from creditgrid.client.reproduce.report import Settings, report
    from creditgrid.client.reproduce.view import report_view

    settings = Settings(epochs, fit_epochs, seeds, dataset, tuple(only or ()))
    if out is not None and not out.resolve().parent.is_dir():  # now, not after hours
        raise BadSetting(f"--out {out}: there is no folder {out.resolve().parent}")
    with open_client(url, token) as client:
        found = report(settings, _run(client, settings))
    document = found.as_json()
    if json_:
        print_json(document)
    else:
        console().print(report_view(found))
    if out is not None:
        write_bytes(json_text(document).encode(), out)
    if not found.complete:
        raise typer.Exit(1)


def _run(client: Client, settings: Settings) -> dict[str, Sweep]:
    """Submit all sweeps first, so that they share their stages, then wait for each."""
    from creditgrid.client.connection import url_option
    from creditgrid.client.display import progress
    from creditgrid.client.reproduce.report import specs

    sweeps: dict[str, Sweep] = {}
    try:
        # The sweep with the most checkpoints of a training comes first, so that one call makes them all.
        wanted = sorted(specs(settings).items(), key=lambda item: -len(item[1]["axes"].get("checkpoint_epoch", ())))
        for experiment, spec in wanted:
            sweeps[experiment] = client.submit(spec)
            note(f"submitted {experiment}: {sweeps[experiment].view.cells:,} cells, sweep {sweeps[experiment].id}")
        for sweep in sweeps.values():
            progress.show(sweep.view, sweep.updates(), client.url, detachable=False)
    except (KeyboardInterrupt, CreditGridError):
        left = [sweep.id for sweep in sweeps.values() if not sweep.state.finished]
        if left:
            command = f"{settings.command}{url_option(client.url)}"
            note(f"the sweeps continue ({', '.join(left)}); for the report run: {command}")
        raise
    return {experiment: sweeps[experiment] for experiment in settings.experiments}
