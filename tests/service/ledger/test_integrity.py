"""A ledger that is broken, or that is not the one of the results beside it, is refused and left as it is."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import sqlalchemy as sa
from postgresql import fresh_database

from creditgrid.core.states import State
from creditgrid.service.ledger import engine, tables
from creditgrid.service.ledger.integrity import LedgerDamaged, check_results
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.results.table import Results


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger of two thousand tasks, closed."""
    file = tmp_path / "ledger.sqlite"
    ledger = Ledger(f"sqlite:///{file}")
    with ledger.write() as connection:
        tables.insert_many(
            connection, tables.tasks, [tables.task_row(f"{n:064}", "k", n, "{}" * 50) for n in range(2000)]
        )
    ledger.close()
    return file


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    found = Ledger(f"sqlite:///{tmp_path / 'new.sqlite'}")
    yield found
    found.close()


def refused(path: Path) -> str:
    """What is said of the file, which stays as it is."""
    before = path.read_bytes()
    with pytest.raises(LedgerDamaged) as caught:
        Ledger(f"sqlite:///{path}")
    assert path.read_bytes() == before
    said = str(caught.value)
    assert str(path) in said
    assert "a copy of it back" in said
    assert "results folder" in said
    return said


def test_a_whole_ledger_is_opened(path: Path) -> None:
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
    page = chance.randrange(1, path.stat().st_size // 4096)
    with path.open("r+b") as file:
        file.seek(4096 * page)
        file.write(chance.randbytes(4096))
    refused(path)


@pytest.mark.parametrize("content", [b"x", b"PAR1" * 5000, b"\0" * 8192])
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(content)
    assert "no SQLite database" in refused(tmp_path / "ledger.sqlite")


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
    ("statement", "said"),
    [
        ("DELETE FROM meta WHERE name = 'identity'", "'meta'"),
        ("DELETE FROM alembic_version", "'alembic_version'"),
        ("DROP TABLE alembic_version", "'alembic_version'"),
    ],
)
def test_a_ledger_without_identity_or_revision(path: Path, statement: str, said: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()
    assert said in refused(path)


def test_missing_tables_in_postgresql() -> None:
    with fresh_database() as found:
        Ledger(found.url).close()
        connected = sa.create_engine(engine.parse_url(found.url))
        tables.waits.drop(connected)
        connected.dispose()
        with pytest.raises(LedgerDamaged, match="no table 'waits'") as caught:
            Ledger(found.url)
        assert "creditgrid_" in str(caught.value)


# -- with the results ----------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path: Path) -> Callable[[Ledger], Results]:
    return lambda ledger: Results(tmp_path / "results", ledger.identity())


def commit(ledger: Ledger, results: Results, number: int, *, append: bool = True, note: bool = True) -> None:
    """Batch ``number`` as a service commits it, as far as it comes."""
    with ledger.write() as connection:
        connection.execute(tables.meta.delete().where(tables.meta.c.name == "batch"))
        connection.execute(tables.meta.insert().values(name="batch", value=str(number)))
        row = {"sweep": "s", "kind": "k", "state": State.RUNNING, "size": 1, "batch": number}
        call = connection.execute(tables.calls.insert().values(**row)).inserted_primary_key
    assert call is not None
    if append:
        results.append(number, [pa.table({"cell": [f"k{number}"], "experiment": ["e"]})])
    if note:
        with ledger.write() as connection:
            tables.move_call(connection, call[0], State.SUCCEEDED)


def test_what_belongs_together_is_taken(ledger: Ledger, results: Callable[[Ledger], Results]) -> None:
    table = results(ledger)
    check_results(ledger, table)  # both are new
    commit(ledger, table, 1, append=False, note=False)  # killed before the append
    check_results(ledger, table)
    commit(ledger, table, 1)
    check_results(ledger, table)
    commit(ledger, table, 2, note=False)  # killed after it
    check_results(ledger, table)
    commit(ledger, table, 3, append=False, note=False)
    check_results(ledger, table)


def test_an_older_copy_of_the_ledger(tmp_path: Path, path: Path, results: Callable[[Ledger], Results]) -> None:
    ledger = Ledger(f"sqlite:///{path}")
    commit(ledger, results(ledger), 1)
    ledger.close()
    copy = path.read_bytes()
    ledger = Ledger(f"sqlite:///{path}")
    commit(ledger, results(ledger), 2)
    ledger.close()
    path.write_bytes(copy)
    ledger = Ledger(f"sqlite:///{path}")
    with pytest.raises(LedgerDamaged, match=r"hold batch 2 and the ledger .* has begun 1: it is an older copy"):
        check_results(ledger, results(ledger))
    ledger.close()


def test_another_ledgers_results(ledger: Ledger, path: Path, results: Callable[[Ledger], Results]) -> None:
    commit(ledger, results(ledger), 1)
    other = Ledger(f"sqlite:///{path}")
    with pytest.raises(LedgerDamaged, match=r"written with another ledger than .*move .*results"):
        check_results(other, results(other))
    other.close()


def test_results_that_are_gone_or_older(ledger: Ledger, tmp_path: Path, results: Callable[[Ledger], Results]) -> None:
    commit(ledger, results(ledger), 1)
    commit(ledger, results(ledger), 2)
    last = tmp_path / "results/_delta_log/00000000000000000001.json"
    last.unlink()
    with pytest.raises(LedgerDamaged, match=r"has seen batch 2 written and the results in .* end with 1"):
        check_results(ledger, results(ledger))
    (tmp_path / "results").rename(tmp_path / "moved")
    with pytest.raises(LedgerDamaged, match="are not there"):
        check_results(ledger, results(ledger))
