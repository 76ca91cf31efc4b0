"""The schema of a ledger: which revision it has, and how alembic brings it to the newest one.

A change of ``tables`` needs a revision in ``migrations/versions``, and its id in ``HEAD``. A new ledger runs all
revisions, so it has the same schema as a migrated one. The table ``meta`` never changes: the lock needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from creditgrid.core.errors import CreditGridError
from creditgrid.service.ledger import engine, tables
from creditgrid.service.ledger.integrity import check_tables, damaged

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0003"
"""The newest revision. It is a constant because alembic, which knows it too, takes long to import."""
MIGRATIONS = "creditgrid.service.ledger:migrations"
"""Where alembic finds the revisions: a package and a folder in it."""


def revision(connection: sa.Connection) -> str | None:
    """The revision of the ledger; None where there is no ledger.

    Raises:
        LedgerDamaged: the ledger names no revision.
        CreditGridError: a newer version made the ledger, or one from the time before alembic.
    """
    names = set(sa.inspect(connection).get_table_names())
    if "alembic_version" in names:
        found = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
        if found is None:
            raise damaged(engine.display_name(connection.engine), "its table 'alembic_version' is empty")
        if found != HEAD and found not in _known():
            raise _refused(connection, f"has schema {found}, which this version does not know (its newest is {HEAD})")
        return str(found)
    if not names & set(tables.metadata.tables):
        return None
    if tables.meta.name in names and connection.scalar(sa.select(tables.meta).filter_by(name="schema")):
        raise _refused(connection, "was made by a version whose ledgers cannot be migrated")
    raise damaged(engine.display_name(connection.engine), "it has no table 'alembic_version'")


def check(connection: sa.Connection) -> None:
    """The ledger has the newest schema, with all its tables and columns.

    Raises:
        LedgerDamaged: a table or column is missing.
        CreditGridError: the ledger is older or newer.
    """
    found = revision(connection)
    if found != HEAD:
        raise CreditGridError(
            f"the ledger {engine.display_name(connection.engine)} has the older schema {found}: start the service "
            f"once, which migrates it to {HEAD}"
        )
    check_tables(connection, tables.metadata)


def upgrade(connection: sa.Connection) -> None:
    """Create the newest schema or migrate the ledger to it, in the transaction of the connection.

    Raises:
        CreditGridError: the ledger is newer.
    """
    if revision(connection) == HEAD:
        return
    from alembic.command import upgrade

    config = _config()
    config.attributes["connection"] = connection
    upgrade(config, HEAD)


def _known() -> set[str]:
    from alembic.script import ScriptDirectory

    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", MIGRATIONS)
    return config


def _refused(connection: sa.Connection, why: str) -> CreditGridError:
    other = "data directory" if engine.sqlite_file(connection.engine) else "data directory and database"
    name = engine.display_name(connection.engine)
    return CreditGridError(f"the ledger {name} {why}: use the version that made it, or another {other}")
