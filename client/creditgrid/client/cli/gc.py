"""The command that removes artifacts from a service's store."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from creditgrid.client.cli.options import OutputOption, Token, Url, emit, note, open_client
from creditgrid.client.errors import BadSetting

# The libraries alone also read -7d, and 7 as seconds; or 7,5GB as 7 bytes, and 2.01KB as 2009.
AGE = re.compile(r"\d+(?:\.\d+)?\s*[smhdw]", re.ASCII | re.IGNORECASE)
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?b)", re.ASCII | re.IGNORECASE)


def gc(
    *,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            metavar="AGE",
            help="Remove artifacts, and logs of tasks, unused for this long: 90m, 7d, 2w.",
        ),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            "--max-size", metavar="SIZE", help="Then remove the longest unused until the rest fits: 500MB, 20GB, 1TB."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing; show what would be removed.")] = False,
    url: Url = None,
    token: Token = None,
    output: OutputOption = "table",
) -> None:
    """Remove artifacts that no open sweep needs, by age and size.

    Without --older-than and --max-size only leftovers of interrupted writes and finished calls are removed.

    Imported checkpoints and rows are always kept. A later sweep computes again what it needs.
    """
    from creditgrid.client.display.tables import retention_table

    age = None if older_than is None else seconds_in(older_than)
    limit = None if max_size is None else bytes_in(max_size)
    with open_client(url, token) as client:
        view = client.gc(older_than_s=age, max_bytes=limit, dry_run=dry_run)
    emit(output, view, retention_table(view))
    if output == "table" and limit is not None and view.kept_bytes > limit:
        note("more than --max-size is kept: open sweeps need it, or it cannot be computed again")


def seconds_in(text: str) -> float:
    """The seconds in an age such as ``7d``.

    Raises:
        BadSetting: for anything but a number and s, m, h, d or w.
    """
    from pytimeparse2 import parse

    seconds = parse(text) if AGE.fullmatch(text.strip()) else None
    if seconds is None:
        raise BadSetting(f"{text!r} is not an age: give a number and s, m, h, d or w, such as 12h or 7d")
    return float(seconds)


def bytes_in(text: str) -> int:
    """The bytes in a size such as ``20GB``.

    Raises:
        BadSetting: for anything but a number and B, KB, MB, GB or TB.
    """
    from pydantic import ByteSize

    found = SIZE.fullmatch(text.strip())
    if found is None:
        raise BadSetting(f"{text!r} is not a size: give a number and B, KB, MB, GB or TB, such as 500MB or 20GB")
    return round(float(found[1]) * ByteSize.byte_sizes[found[2].lower()])
