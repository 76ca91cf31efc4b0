"""The command that compares results with the published figures: of the published settings, or of existing sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from creditgrid.client.cli.options import Token, Url, console, json_text, note, open_client, print_json, write_bytes
from creditgrid.client.errors import BadSetting
from creditgrid.core.errors import CreditGridError

if TYPE_CHECKING:
    from creditgrid.client.client import Client
    from creditgrid.client.reproduce.runs import Settings
    from creditgrid.client.sweep import Sweep


def reproduce(
    *,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Compare this sweep, and submit nothing; may be repeated."),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Epochs of training; fits and checkpoints are scaled in proportion. Default: 100."
        ),
    ] = None,
    fit_epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Epochs of every fit. Default: in proportion to --epochs.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(metavar="K", help="Seeds 42 … 41 + K. Default: 1.")] = None,
    dataset: Annotated[
        str | None,
        typer.Option(metavar="NAME|FOLDER", help="A dataset's name, or a folder of Parquet files. Default: cifar10."),
    ] = None,
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

    Needs a service. Existing results are not computed again. With --sweep, nothing is submitted: the rows of these
    sweeps at the published values of their parameters are compared, and --dataset, --epochs, --fit-epochs and --seeds
    choose among them.

    Exits with 1 if a result is missing, or if a published sign or order of methods is contradicted: the 95 % interval
    over the seeds lies on the other side of 0. One seed has no interval: everything is then unclear, and contradicts
    nothing.
    """
    # Imported here, because help needs no YAML.
    from creditgrid.client.reproduce.published import DATASET, TRAIN_EPOCHS
    from creditgrid.client.reproduce.report import report, report_of
    from creditgrid.client.reproduce.runs import Choice, Settings, absolute
    from creditgrid.client.reproduce.view import report_view

    settings = Settings(
        TRAIN_EPOCHS if epochs is None else epochs,
        fit_epochs,
        1 if seeds is None else seeds,
        DATASET if dataset is None else dataset,
        tuple(only or ()),
    )
    if out is not None and not out.resolve().parent.is_dir():  # now, not after hours
        raise BadSetting(f"--out {out}: there is no folder {out.resolve().parent}")
    with open_client(url, token) as client:
        if sweep:
            chosen = Choice(
                epochs, fit_epochs, settings.seed_list if seeds else None, absolute(dataset) if dataset else None
            )
            found = report_of([client.sweep(one) for one in dict.fromkeys(sweep)], chosen, settings.only)
        else:
            found = report(settings, _run(client, settings))
    document = found.as_json()
    if json_:
        print_json(document)
    else:
        console().print(report_view(found))
    if out is not None:
        write_bytes(json_text(document).encode(), out)
    if not found.passed:
        raise typer.Exit(1)


def _run(client: Client, settings: Settings) -> dict[str, Sweep]:
    """Submit all sweeps first, so that they share their stages, then wait for each."""
    from creditgrid.client.connection import url_option
    from creditgrid.client.display import progress
    from creditgrid.client.reproduce.runs import specs

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
