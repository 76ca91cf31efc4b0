"""Commands of an administrator: tokens, and the audit log."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from creditgrid.client.cli.gc import seconds_in
from creditgrid.client.cli.options import OutputOption, Token, Url, emit, note, open_client, print_json

NEVER = "never"

token = typer.Typer(help="Create, list and revoke tokens, with which people share a service.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The token's name.")]


@token.command()
def create(
    *,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Its holder, who owns the sweeps sent with it.")],
    role: Annotated[
        Literal["read", "submit", "admin"],
        typer.Option(
            "--role",
            help="read, plan and query; also submit, and change own sweeps; or administer everything.",
        ),
    ],
    expires: Annotated[
        str, typer.Option("--expires", metavar="AGE", help=f"When it expires: 12h, 90d, 52w, or {NEVER}.")
    ] = "90d",
    max_open_cells: Annotated[
        int | None, typer.Option("--max-open-cells", help="Open cells of its holder. Default: the service's limit.")
    ] = None,
    max_priority: Annotated[
        int | None, typer.Option("--max-priority", help="Highest priority of its sweeps. Default: the service's limit.")
    ] = None,
    url: Url = None,
    token: Token = None,
    output: OutputOption = "table",
) -> None:
    """Create a token and print it. It cannot be shown again: the service keeps only its hash."""
    seconds = None if expires == NEVER else seconds_in(expires)
    with open_client(url, token) as client:
        made = client.create_token(name, role, seconds, max_open_cells=max_open_cells, max_priority=max_priority)
    if output == "json":
        print_json(made)
        return
    typer.echo(made.token)
    until = (
        "does not expire" if made.expires_at is None else f"expires on {made.expires_at.astimezone():%Y-%m-%d %H:%M}"
    )
    note(f"token of {made.name}, role {made.role}; it {until}. It is shown only now: give it as $CREDITGRID_TOKEN")


@token.command()
def ls(url: Url = None, token: Token = None, output: OutputOption = "table") -> None:
    """List tokens, the newest first, those that have ended too."""
    from creditgrid.client.display.tables import tokens_table

    with open_client(url, token) as client:
        views = client.tokens()
    emit(output, views, tokens_table(views))


@token.command()
def revoke(name: Name, url: Url = None, token: Token = None, output: OutputOption = "table") -> None:
    """Revoke a token: no later request with it is accepted."""
    with open_client(url, token) as client:
        view = client.revoke_token(name)
    emit(output, view, f"the token of {view.name} is revoked")


def audit(
    *,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 50,
    actor: Annotated[str | None, typer.Option(metavar="NAME", help="Only what the holder of this token did.")] = None,
    target: Annotated[
        str | None, typer.Option(metavar="ID", help="Only what was done to this sweep, token or checkpoint.")
    ] = None,
    url: Url = None,
    token: Token = None,
    output: OutputOption = "table",
) -> None:
    """List who changed what, the newest first."""
    from creditgrid.client.display.tables import audit_table

    with open_client(url, token) as client:
        views = list(client.audit(actor=actor, target=target, limit=limit))
    emit(output, views, audit_table(views))
