"""Whether a ledger is whole, asked once when it is opened: a broken one is refused before anything stands on it.

Two things are looked at: the database itself, and whether it belongs to the results table beside it. A ledger that is
older than the table takes rows for written that were not; one that is newer, or another one's, writes rows twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from creditgrid.core.errors import CreditGridError
from creditgrid.service.ledger import engine

if TYPE_CHECKING:
    from creditgrid.service.ledger.ledger import Ledger
    from creditgrid.service.results.table import Results

MAGIC = b"SQLite format 3\x00"
ANEW = "all is planned anew then, and artifacts stay and are used again"


class LedgerDamaged(CreditGridError):
    """The ledger is not what was written, or not the one that the results were written with."""


def check_file(path: Path) -> None:
    """A file that is there is one of SQLite's; an empty one counts as new.

    Raises:
        LedgerDamaged: it is something else.
        OSError: it cannot be read.
    """
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb") as file:
        begin = file.read(len(MAGIC))
    if begin != MAGIC:
        raise damaged(str(path), f"it is no SQLite database (it begins with {begin!r})")


def check_pages(connection: sa.Connection) -> None:
    """Every page of a SQLite file is where its tree says, and can be read. PostgreSQL looks after its own.

    Raises:
        LedgerDamaged: the first fault that SQLite names.
    """
    path = engine.sqlite_file(connection.engine)
    if path is None:
        return
    found = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA quick_check(1)")]
    if found != ["ok"]:
        raise damaged(str(path), "; ".join(found))


def check_tables(connection: sa.Connection, metadata: sa.MetaData) -> None:
    """All tables are there, with all their columns.

    Raises:
        LedgerDamaged: one is not.
    """
    held = {table: {column["name"] for column in columns} for (_, table), columns in _columns(connection)}
    for table in metadata.sorted_tables:
        if table.name not in held:
            raise damaged(engine.display_name(connection.engine), f"it has no table {table.name!r}")
        if lacking := [column.name for column in table.columns if column.name not in held[table.name]]:
            text = f"its table {table.name!r} has no column {lacking[0]!r}"
            raise damaged(engine.display_name(connection.engine), text)


def check_results(ledger: Ledger, results: Results) -> None:
    """The results table was written with this ledger, and holds the batches that the ledger has seen written.

    Raises:
        LedgerDamaged: with which of both is older, or foreign.
    """
    held = results.newest()
    begun, written = ledger.batches()
    if held is None and results.dataset() is not None:
        raise LedgerDamaged(
            f"the results in {results.path} were written with another ledger than {ledger.name}, which knows none of "
            f"them and would write their rows twice. Put the ledger back that belongs to them, or move {results.path} "
            f"away: {ANEW}"
        )
    if (held or 0) > begun:
        raise LedgerDamaged(
            f"the results in {results.path} hold batch {held} and the ledger {ledger.name} has begun {begun}: it is an "
            "older copy, and would take rows for written that are not. Put the newest ledger back, or move it and "
            f"{results.path} away together: {ANEW}"
        )
    if (held or 0) < written:
        raise LedgerDamaged(
            f"the ledger {ledger.name} has seen batch {written} written and the results in {results.path} "
            f"{'are not there' if held is None else f'end with {held}'}: they are an older copy, were removed, or this "
            "data directory is not the one that belongs to the ledger. Put the results back, or move both away "
            f"together: {ANEW}"
        )


def damaged(name: str, what: str) -> LedgerDamaged:
    """The error for a database that is broken."""
    return LedgerDamaged(
        f"the ledger {name} is damaged: {what}. Nothing was changed. Put a copy of it back, or move it and the data "
        f"directory's results folder away together: {ANEW}"
    )


def _columns(
    connection: sa.Connection,
) -> list[tuple[tuple[str | None, str], list[sa.engine.interfaces.ReflectedColumn]]]:
    return list(sa.inspect(connection).get_multi_columns().items())
