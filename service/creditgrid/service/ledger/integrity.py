"""Whether a ledger's database is whole. It is checked once, when it is opened: a broken one is refused."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from creditgrid.core.errors import CreditGridError
from creditgrid.service.ledger import engine

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
