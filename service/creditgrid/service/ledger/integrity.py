"""Checks that a ledger's database is undamaged. They run when it is opened, and refuse a damaged one."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from creditgrid.core.errors import CreditGridError
from creditgrid.service.ledger import engine

MAGIC = b"SQLite format 3\x00"
AFTERWARDS = "everything is then planned again, and the artifacts are reused"
"""What happens after a user has moved a ledger or its results away."""


class LedgerDamaged(CreditGridError):
    """The ledger is damaged, or does not belong to the results."""


def check_file(path: Path) -> None:
    """An existing file is a SQLite database, or empty: that is a new ledger.

    Raises:
        LedgerDamaged: the file is something else.
        OSError: the file cannot be read.
    """
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
    if start != MAGIC:
        raise damaged(str(path), f"it is not a SQLite database (it starts with {start!r})")


def check_pages(connection: sa.Connection) -> None:
    """SQLite finds no damaged page in its file. PostgreSQL checks its own pages.

    Raises:
        LedgerDamaged: with the first fault that SQLite found.
    """
    path = engine.sqlite_file(connection.engine)
    if path is None:
        return
    found = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA quick_check(1)")]
    if found != ["ok"]:
        raise damaged(str(path), "; ".join(found))


def check_tables(connection: sa.Connection, metadata: sa.MetaData) -> None:
    """The database has all tables with all their columns.

    Raises:
        LedgerDamaged: with the first table or column that is missing.
    """
    found = {
        table: {column["name"] for column in columns}
        for (_, table), columns in sa.inspect(connection).get_multi_columns().items()
    }
    name = engine.display_name(connection.engine)
    for table in metadata.sorted_tables:
        if table.name not in found:
            raise damaged(name, f"it has no table {table.name!r}")
        if missing := [column.name for column in table.columns if column.name not in found[table.name]]:
            raise damaged(name, f"its table {table.name!r} has no column {missing[0]!r}")


def damaged(name: str, what: str) -> LedgerDamaged:
    """The error for a damaged database."""
    return LedgerDamaged(
        f"the ledger {name} is damaged: {what}. Nothing was changed. Restore a copy of it, or move it and the data "
        f"directory's results folder away together: {AFTERWARDS}"
    )
