"""A ledger and a results table that do not belong together are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from creditgrid.core.states import State
from creditgrid.service.ledger import tables, transitions
from creditgrid.service.ledger.integrity import LedgerDamaged
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.results.consistency import check_ledger
from creditgrid.service.results.table import Results


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(f"sqlite:///{tmp_path / 'new.sqlite'}")
    yield made
    made.close()


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
            transitions.close_call(connection, call[0])


def test_what_belongs_together_is_taken(ledger: Ledger, results: Callable[[Ledger], Results]) -> None:
    table = results(ledger)
    check_ledger(table, ledger)  # both are new
    commit(ledger, table, 1, append=False, note=False)  # killed before the append
    check_ledger(table, ledger)
    commit(ledger, table, 1)
    check_ledger(table, ledger)
    commit(ledger, table, 2, note=False)  # killed after it
    check_ledger(table, ledger)
    commit(ledger, table, 3, append=False, note=False)
    check_ledger(table, ledger)


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
    with pytest.raises(
        LedgerDamaged, match=r"hold batch 2, and the ledger .* has only started batch 1: it is an older copy"
    ):
        check_ledger(results(ledger), ledger)
    ledger.close()


def test_another_ledgers_results(ledger: Ledger, path: Path, results: Callable[[Ledger], Results]) -> None:
    commit(ledger, results(ledger), 1)
    other = Ledger(f"sqlite:///{path}")
    with pytest.raises(LedgerDamaged, match=r"belong to another ledger than .*move .*results"):
        check_ledger(results(other), other)
    other.close()


def test_results_that_are_gone_or_older(ledger: Ledger, tmp_path: Path, results: Callable[[Ledger], Results]) -> None:
    commit(ledger, results(ledger), 1)
    commit(ledger, results(ledger), 2)
    last = tmp_path / "results/_delta_log/00000000000000000001.json"
    last.unlink()
    with pytest.raises(LedgerDamaged, match=r"notes batch 2 as written, and the results in .* end with 1"):
        check_ledger(results(ledger), ledger)
    (tmp_path / "results").rename(tmp_path / "moved")
    with pytest.raises(LedgerDamaged, match="are missing"):
        check_ledger(results(ledger), ledger)
