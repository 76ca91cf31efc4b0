"""A ledger has the schema of ``tables``, whether it is new or migrated; a schema of another version is refused."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sweeping import House

from creditgrid.core.errors import ConflictError, CreditGridError
from creditgrid.core.states import State
from creditgrid.service.ledger import engine, schema, tables
from creditgrid.service.ledger.events import emit_event
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.services import create_planner
from creditgrid.service.settings import Settings

NEXT = f"""
import sqlalchemy as sa
from alembic import op

revision = "next"
down_revision = "{schema.HEAD}"


def upgrade() -> None:
    op.add_column("sweeps", sa.Column("cost", sa.Integer))
    op.execute("UPDATE sweeps SET cost = 10 * cells")
"""
"""A revision after the newest one. It adds a column and computes its values."""
CANCELLED, PENDING = "s6b0853aa8611f084", "s6b0853aa89f4dd1f"
"""The sweeps of the first ledger."""


def load_first_ledger(url: str) -> None:
    """A ledger as the first revision made it, with a cancelled and a pending sweep of the plugin ``noop``."""
    folder = Path(__file__).with_name("first_schema")
    connected = sa.create_engine(engine.parse_url(url))
    with connected.begin() as connection:
        for name in (connection.dialect.name, "rows"):
            for statement in (folder / f"{name}.sql").read_text().split(";\n"):
                if statement:
                    connection.exec_driver_sql(statement)
    connected.dispose()


def make_ledger(url: str) -> None:
    """The same ledger with the newest schema."""
    load_first_ledger(url)
    Ledger(url, lock=True).close()


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Rows of the database, read without a ledger."""
    connected = sa.create_engine(engine.parse_url(url))
    with connected.begin() as connection:
        rows = [tuple(row) for row in connection.execute(sa.text(statement))]
    connected.dispose()
    return rows


def revision_of(url: str) -> list[tuple[Any, ...]]:
    return query(url, "SELECT version_num FROM alembic_version")


def add_revision(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str = NEXT) -> None:
    """From here on this version of CreditGrid has one more revision."""
    package, _, name = schema.MIGRATIONS.partition(":")
    shutil.copytree(str(files(package) / name), folder)
    (folder / "versions/next.py").write_text(text)
    monkeypatch.setattr(schema, "MIGRATIONS", str(folder))
    monkeypatch.setattr(schema, "HEAD", "next")


def difference(url: str) -> list[Any]:
    """What alembic finds different between the database and ``tables``."""
    connected = sa.create_engine(engine.parse_url(url))
    with connected.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), tables.metadata)
    connected.dispose()
    return list(found)


# -- a new ledger --------------------------------------------------------------------------------------------------


def test_the_newest_revision_is_the_head() -> None:
    config = Config()
    config.set_main_option("script_location", schema.MIGRATIONS)
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]


def test_a_new_ledger_has_the_schema_of_the_tables(url: str) -> None:
    Ledger(url).close()
    assert difference(url) == []
    assert revision_of(url) == [(schema.HEAD,)]


def test_ids_of_a_new_ledger_are_never_used_again(tmp_path: Path) -> None:
    """SQLite's AUTOINCREMENT, which alembic does not compare."""
    url, plain = f"sqlite:///{tmp_path / 'ledger.sqlite'}", f"sqlite:///{tmp_path / 'plain.sqlite'}"
    Ledger(url).close()
    connected = sa.create_engine(plain)
    tables.metadata.create_all(connected)
    connected.dispose()
    statement = "SELECT name FROM sqlite_master WHERE sql LIKE '%AUTOINCREMENT%' ORDER BY name"
    assert query(url, statement) == query(plain, statement)
    assert len(query(url, statement)) >= 3


def test_opening_a_ledger_loads_no_alembic(url: str) -> None:
    Ledger(url).close()
    program = (
        "import sys; from creditgrid.service.ledger.ledger import Ledger\n"
        "Ledger(sys.argv[1]).close(); Ledger(sys.argv[1], lock=True).close()\n"
        "sys.exit('alembic' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, url], check=True, timeout=60)


# -- older and newer ledgers ---------------------------------------------------------------------------------------


def test_a_sweep_of_the_first_schema_finishes_on_the_newest(url: str, tmp_path: Path) -> None:
    load_first_ledger(url)
    Ledger(url, lock=True).close()
    assert difference(url) == []
    assert revision_of(url) == [(schema.HEAD,)]
    house = House(tmp_path, url=url)
    assert house.ledger.identity() == "18eba2bf498847a6"
    assert house.counts(PENDING) == {State.PENDING: 3}
    house.drain()
    assert house.counts(PENDING) == {State.SUCCEEDED: 3}
    assert house.counts(CANCELLED) == {State.CANCELLED: 1}
    assert sorted(row["twice"] for row in house.rows()) == [2.0, 4.0, 6.0]
    house.check()
    house.close()


def test_an_older_ledger_is_migrated(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_first_ledger(url)
    add_revision(monkeypatch, tmp_path / "migrations")
    Ledger(url, lock=True).close()
    assert revision_of(url) == [("next",)]
    assert query(url, "SELECT id, cost FROM sweeps ORDER BY seq") == [(CANCELLED, 10), (PENDING, 30)]
    Ledger(url).close()  # it is as new as this version now


def test_only_the_owner_of_the_lock_migrates(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_ledger(url)
    head = schema.HEAD
    running = Ledger(url, lock=True)
    add_revision(monkeypatch, tmp_path / "migrations")
    with pytest.raises(
        CreditGridError, match=f"older schema {head}: start the service once, which migrates it to next"
    ):
        Ledger(url)
    with pytest.raises(ConflictError, match="in use by the service with process id"):
        Ledger(url, lock=True)
    assert revision_of(url) == [(head,)]
    with running.write() as connection:
        emit_event(connection, "s", "t", "m")
    running.close()
    Ledger(url, lock=True).close()
    assert revision_of(url) == [("next",)]


def test_a_plan_without_a_service_does_not_migrate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, head = f"sqlite:///{tmp_path / 'ledger.sqlite'}", schema.HEAD
    make_ledger(url)
    add_revision(monkeypatch, tmp_path / "migrations")
    with pytest.raises(CreditGridError, match=f"older schema {head}: start the service once"):
        create_planner(Settings(data_dir=tmp_path))
    assert revision_of(url) == [(head,)]


def test_a_migration_that_fails_changes_nothing(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_ledger(url)
    with monkeypatch.context() as patch:
        add_revision(patch, tmp_path / "migrations", f"{NEXT}    op.execute('INSERT INTO nowhere VALUES (1)')\n")
        with pytest.raises(CreditGridError, match=r"cannot be used: .*nowhere"):
            Ledger(url, lock=True)
    assert revision_of(url) == [(schema.HEAD,)]
    assert difference(url) == []
    Ledger(url, lock=True).close()


@pytest.mark.parametrize("lock", [False, True])
def test_a_newer_ledger_is_refused_and_left_alone(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: bool
) -> None:
    make_ledger(url)
    with monkeypatch.context() as patch:
        add_revision(patch, tmp_path / "migrations")
        Ledger(url, lock=True).close()
    with pytest.raises(CreditGridError, match="use the version that made it, or another data directory") as caught:
        Ledger(url, lock=lock)
    assert f"has schema next, which this version does not know (its newest is {schema.HEAD})" in str(caught.value)
    assert revision_of(url) == [("next",)]
    assert query(url, "SELECT cost FROM sweeps ORDER BY seq") == [(10,), (30,)]


@pytest.mark.parametrize("lock", [False, True])
def test_a_ledger_from_before_alembic_is_refused_and_left_alone(url: str, lock: bool) -> None:
    connected = sa.create_engine(engine.parse_url(url))
    tables.metadata.create_all(connected)
    with connected.begin() as connection:
        connection.execute(tables.meta.insert().values(name="schema", value="2"))
    connected.dispose()
    with pytest.raises(CreditGridError, match="use the version that made it, or another data directory") as caught:
        Ledger(url, lock=lock)
    assert "was made by a version whose ledgers cannot be migrated" in str(caught.value)
    assert re.search("ledger.sqlite|creditgrid_", str(caught.value))
    assert query(url, "SELECT * FROM meta") == [("schema", "2")]
