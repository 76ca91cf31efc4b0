"""A damaged ledger is refused and does not change."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from ledger_rows import new_task, plain_task
from postgresql import fresh_database

from creditgrid.service.ledger import engine, tables
from creditgrid.service.ledger.integrity import LedgerDamaged
from creditgrid.service.ledger.ledger import Ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger of two thousand tasks, closed."""
    file = tmp_path / "ledger.sqlite"
    ledger = Ledger(f"sqlite:///{file}")
    with ledger.write() as connection:
        engine.insert_many(
            connection,
            tables.tasks,
            [new_task(plain_task(f"{n:064}", x="." * 50), n) for n in range(2000)],
        )
    ledger.close()
    return file


def refused(path: Path) -> str:
    """The message that refuses the file. The file does not change."""
    before = path.read_bytes()
    with pytest.raises(LedgerDamaged) as caught:
        Ledger(f"sqlite:///{path}")
    assert path.read_bytes() == before
    message = str(caught.value)
    assert str(path) in message
    assert "Restore a copy of it" in message
    assert "results folder" in message
    return message


def test_an_undamaged_ledger_is_opened(path: Path) -> None:
    ledger = Ledger(f"sqlite:///{path}")
    with ledger.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(tables.tasks)) == 2000
    ledger.close()


@pytest.mark.parametrize("part", [0.01, 0.3, 0.5, 0.9, 0.999])
def test_truncated(path: Path, part: float) -> None:
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * part))
    refused(path)


@pytest.mark.parametrize("seed", range(10))
def test_garbage_in_the_middle(path: Path, seed: int) -> None:
    chance = random.Random(seed)
    page = chance.randrange(1, path.stat().st_size // engine.PAGE_BYTES)
    with path.open("r+b") as file:
        file.seek(engine.PAGE_BYTES * page)
        file.write(chance.randbytes(engine.PAGE_BYTES))
    refused(path)


@pytest.mark.parametrize("content", [b"x", b"PAR1" * 5000, b"\0" * 8192])
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(content)
    assert "not a SQLite database" in refused(tmp_path / "ledger.sqlite")


def test_an_empty_file_is_a_new_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").touch()
    Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}").close()


@pytest.mark.parametrize("table", [table.name for table in tables.metadata.sorted_tables])
def test_a_missing_table(path: Path, table: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(f"DROP TABLE {table}")
    connection.close()
    assert repr(table) in refused(path)


def test_a_missing_column(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE tasks DROP COLUMN bytes")
    connection.close()
    assert "'bytes'" in refused(path)


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("DELETE FROM meta WHERE name = 'identity'", "'meta'"),
        ("DELETE FROM alembic_version", "'alembic_version'"),
        ("DROP TABLE alembic_version", "'alembic_version'"),
    ],
)
def test_a_ledger_without_identity_or_revision(path: Path, statement: str, named: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()
    assert named in refused(path)


def test_missing_tables_in_postgresql() -> None:
    with fresh_database() as found:
        Ledger(found.url).close()
        connected = sa.create_engine(engine.parse_url(found.url))
        tables.waits.drop(connected)
        connected.dispose()
        with pytest.raises(LedgerDamaged, match="no table 'waits'") as caught:
            Ledger(found.url)
        assert "creditgrid_" in str(caught.value)
