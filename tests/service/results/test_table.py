"""The results table: a batch is in it once, whoever asks again, and readers are never in the way."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import creditgrid_noop as noop
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from creditgrid.core.experiment import Experiment
from creditgrid.core.experiments.registry import registry
from creditgrid.core.rows import schema, table
from creditgrid.service.results import delta_table as module
from creditgrid.service.results.table import Results

LINESEARCH = registry().experiments["linesearch"]


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "results", "ledger-a")


def rows(*xs: int, experiment: Experiment = noop.EXPERIMENT, **values: Any) -> pa.Table:
    named = [
        {"cell": f"c{x}", "experiment": experiment.name, **({"x": x} if experiment is noop.EXPERIMENT else {})}
        for x in xs
    ]
    return table(experiment, [{**row, **values} for row in named])


def cells(results: Results) -> Counter[str]:
    dataset = results.dataset()
    return Counter() if dataset is None else Counter(dataset.to_table(columns=["cell"])["cell"].to_pylist())


def test_a_table_without_rows_is_none_and_still_has_its_columns(results: Results) -> None:
    assert results.dataset() is None
    assert not results.holds(1)
    names = results.schema().names
    assert len(names) == len(set(names))
    assert {"cell", "eta", "delta_loss_same", "twice", "diverged"} <= set(names)


def test_a_batch_is_one_commit(results: Results, tmp_path: Path) -> None:
    results.append(1, [rows(1, 2), rows(3)])
    assert cells(results) == {"c1": 1, "c2": 1, "c3": 1}
    assert DeltaTable(str(tmp_path / "results")).version() == 0
    results.append(2, [rows(4)])
    assert DeltaTable(str(tmp_path / "results")).version() == 1
    assert cells(results) == {"c1": 1, "c2": 1, "c3": 1, "c4": 1}


def test_what_was_appended_is_read_with_its_types(results: Results) -> None:
    made = rows(1, twice=2.5, sweep="s", diverged=False, attempt=3)
    results.append(1, [made])
    dataset = results.dataset()
    assert dataset is not None
    found = dataset.to_table().select(made.schema.names)
    assert found.schema.names == schema(noop.EXPERIMENT).names
    assert found.to_pylist() == made.to_pylist()


def test_a_batch_that_is_there_is_not_appended_again(results: Results, tmp_path: Path) -> None:
    results.append(1, [rows(1)])
    results.append(1, [rows(1)])
    again = Results(tmp_path / "results", "ledger-a")  # after a restart
    assert again.holds(1)
    assert not again.holds(2)
    again.append(1, [rows(1)])
    assert cells(again) == {"c1": 1}
    again.append(2, [rows(2)])
    assert cells(results) == {"c1": 1, "c2": 1}
    assert results.holds(2)


def test_another_ledgers_batches_are_its_own(results: Results, tmp_path: Path) -> None:
    results.append(5, [rows(1)])
    other = Results(tmp_path / "results", "ledger-b")
    assert not other.holds(1)
    other.append(1, [rows(2)])
    assert other.holds(1)
    assert results.holds(5)
    assert not results.holds(6)
    assert cells(results) == {"c1": 1, "c2": 1}


def test_experiments_add_their_columns_and_lie_apart(results: Results, tmp_path: Path) -> None:
    results.append(1, [rows(1, twice=2.0)])
    results.append(2, [rows(7, experiment=LINESEARCH, eta=0.1), rows(2)])
    dataset = results.dataset()
    assert dataset is not None
    found = {row["cell"]: row for row in dataset.to_table().to_pylist()}
    assert (found["c1"]["twice"], found["c1"]["eta"]) == (2.0, None)
    assert (found["c7"]["twice"], found["c7"]["eta"]) == (None, 0.1)
    assert {path.name for path in (tmp_path / "results").glob("experiment=*")} == {
        "experiment=noop",
        "experiment=linesearch",
    }


def test_rows_with_another_type_of_a_column_do_not_fit(results: Results) -> None:
    ours, other = schema(noop.EXPERIMENT), pa.schema([("twice", pa.string()), ("new", pa.string())])
    assert results.misfit(other) is None  # there are no rows yet
    results.append(1, [rows(1)])
    assert results.misfit(ours) is None
    assert results.misfit(schema(LINESEARCH)) is None
    why = "the column 'twice' is string here and double in the stored rows: rename it"
    assert results.misfit(other) == why
    eta = pa.schema([("eta", pa.int64())])
    assert results.misfit(eta) is None
    results.append(2, [rows(2, experiment=LINESEARCH)])
    assert results.misfit(eta) == "the column 'eta' is int64 here and double in the stored rows: rename it"


def test_batches_are_known_after_many_commits(results: Results, tmp_path: Path) -> None:
    for batch in range(1, 13):
        results.append(batch, [rows(batch)])
    DeltaTable(str(tmp_path / "results")).create_checkpoint()
    for log in (tmp_path / "results" / "_delta_log").glob("0000000000000000000*.json"):
        if int(log.stem) < 11:
            log.unlink()  # commits that a checkpoint contains may be removed
    again = Results(tmp_path / "results", "ledger-a")
    assert again.holds(12)
    assert not again.holds(13)
    assert sum(cells(again).values()) == 12


def test_readers_see_whole_batches_while_one_is_appended(results: Results) -> None:
    results.append(1, [rows(*range(50))])
    stop = threading.Event()
    seen: set[int] = set()
    troubles: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                seen.add(sum(cells(results).values()))
        except BaseException as error:
            troubles.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for batch in range(2, 8):
        results.append(batch, [rows(*range(50 * batch, 50 * batch + 50))])
    stop.set()
    for reader in readers:
        reader.join()
    assert troubles == []
    assert all(count % 50 == 0 for count in seen)


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), DeltaError("commit failed")])
def test_an_append_that_failed_comes_again_and_its_rows_stand_once(
    results: Results, monkeypatch: pytest.MonkeyPatch, committed: bool, fault: Exception
) -> None:
    results.append(1, [rows(1)])
    original = module.write_deltalake

    def failing(*arguments: Any, **options: Any) -> None:
        if committed:  # it was too late for the failure to keep the rows out
            original(*arguments, **options)
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_deltalake", failing)
        with pytest.raises(type(fault)):
            results.append(2, [rows(2)])
    assert results.holds(2) is committed
    for batch in (2, 2, 3):
        results.append(batch, [rows(batch)])
    assert cells(results) == {"c1": 1, "c2": 1, "c3": 1}
