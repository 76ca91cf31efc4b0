"""The table stays small, whatever happens meanwhile."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import creditgrid_noop as noop
import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from creditgrid.core.experiment import Experiment
from creditgrid.core.experiments.registry import registry
from creditgrid.core.rows import table
from creditgrid.service.results import upkeep as module
from creditgrid.service.results.delta_log import LOG, TableLog
from creditgrid.service.results.table import Results
from creditgrid.service.results.upkeep import Upkeep

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


@pytest.fixture
def upkeep(results: Results) -> Upkeep:
    return Upkeep(results)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight small files are many, and so are eight commits."""
    monkeypatch.setattr(module, "LEVELS", ((0, 2**20, 8),))
    monkeypatch.setattr(module, "CHECKPOINT_EVERY", 8)


def data_files(path: Path) -> int:
    return len(list(path.glob("experiment=*/*")))


@pytest.mark.usefixtures("eager")
def test_many_small_files_become_few_and_nothing_is_forgotten(results: Results, upkeep: Upkeep, tmp_path: Path) -> None:
    path = tmp_path / "results"
    assert (upkeep.compact(), upkeep.checkpoint(), upkeep.vacuum(0)) == (0, False, 0)
    before = None
    for batch in range(1, 42):
        results.append(batch, [rows(batch)])
        upkeep.compact()
        upkeep.checkpoint()
        if batch == 7:
            before = results.dataset()
            assert before is not None
        assert upkeep.vacuum(3600) == 0
    assert len(DeltaTable(path).file_uris()) <= 8
    assert cells(results) == {f"c{batch}": 1 for batch in range(1, 42)}
    assert before is not None
    assert before.to_table().num_rows == 7  # a running query reads the old files
    assert upkeep.vacuum(0) > 35
    assert data_files(path) == len(DeltaTable(path).file_uris())
    log = TableLog(path)
    assert len(log.checkpoints()) == 2
    assert len(log.commits()) <= 3 * 8
    again = Results(path, "ledger-a")
    again.repair()
    assert again.holds(41)
    assert not again.holds(42)
    assert cells(again) == {f"c{batch}": 1 for batch in range(1, 42)}


@pytest.mark.usefixtures("eager")
def test_only_experiments_with_many_small_files_are_compacted(results: Results, upkeep: Upkeep, tmp_path: Path) -> None:
    for batch in range(1, 8):
        results.append(batch, [rows(batch), rows(100 + batch, experiment=LINESEARCH)])
    results.append(8, [rows(8)])
    assert upkeep.compact() == 8
    files = [Path(uri).parent.name for uri in DeltaTable(tmp_path / "results").file_uris()]
    assert Counter(files) == {"experiment=noop": 1, "experiment=linesearch": 7}


def test_large_files_are_left_to_their_level(
    results: Results, upkeep: Upkeep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for batch in range(1, 9):
        results.append(batch, [rows(batch)])
    sizes = [Path(uri).stat().st_size for uri in DeltaTable(tmp_path / "results").file_uris()]
    monkeypatch.setattr(module, "LEVELS", ((0, min(sizes), 2), (max(sizes) + 1, 2**20, 2)))
    assert upkeep.compact() == 0
    monkeypatch.setattr(module, "LEVELS", ((0, min(sizes), 2), (min(sizes), 2**20, 2)))
    assert upkeep.compact() == 8


@pytest.mark.usefixtures("eager")
def test_compaction_keeps_every_bit(results: Results, upkeep: Upkeep) -> None:
    nans = [0x7FF8000000000001, 0x7FF0000000000001, 0xFFF8DEADBEEF0000]
    bits = np.array([*nans, 0x8000000000000000, 1, 0x000FFFFFFFFFFFFF], np.uint64).view(np.float64)
    made = []
    for batch, bit in enumerate([*bits, *bits], start=1):
        table_ = pa.table(
            {
                "cell": [f"c{batch}", None],
                "experiment": ["noop", "noop"],
                "number": pa.array(np.array([bit, -bit])),
                "count": pa.array([2**63 - 1, -(2**63)], pa.int64()),
                "text": ["η — \u0000 \ud7ff", ""],
                "at": pa.array([datetime(1, 1, 1, tzinfo=UTC), None], pa.timestamp("us", "UTC")),
                "small": pa.array([1.1, None], pa.float32()),
            }
        )
        made.append(table_)
        results.append(batch, [table_])
    assert upkeep.compact() == 12
    dataset = results.dataset()
    assert dataset is not None
    found = dataset.to_table().select(made[0].column_names)
    assert found.schema.types == made[0].schema.types

    def raw(tables: list[pa.Table]) -> Counter[tuple[Any, ...]]:
        table_ = pa.concat_tables(tables).combine_chunks()
        numbers = table_["number"].combine_chunks().view(pa.int64())
        rest = table_.drop(["number"]).to_pylist()
        return Counter((number.as_py(), *row.values()) for number, row in zip(numbers, rest, strict=True))

    assert raw([found]) == raw(made)


def test_unused_files_are_removed_after_their_time(results: Results, upkeep: Upkeep, tmp_path: Path) -> None:
    path = tmp_path / "results"
    for batch in (1, 2):
        results.append(batch, [rows(batch)])
    strays = [
        path / "experiment=noop" / "part-00000-x-c000.snappy.parquet",
        path / "experiment=noop" / "part-00000-y-c000.snappy.parquet#1",
        path / LOG / "_commit_1.json.tmp",
        path / LOG / f"{2:020}.json#3",
    ]
    for stray in strays:
        stray.write_bytes(b"started")
    assert upkeep.vacuum(3600) == 0
    assert all(stray.exists() for stray in strays)
    assert upkeep.vacuum(0) == 4
    assert not any(stray.exists() for stray in strays)
    for stray in strays:
        stray.write_bytes(b"started")
    again = Results(path, "ledger-a")
    again.repair()  # their writers have died
    assert not any(stray.exists() for stray in strays)
    assert cells(again) == {"c1": 1, "c2": 1}


@pytest.mark.usefixtures("eager")
def test_appends_compactions_and_queries_run_at_the_same_time(results: Results, upkeep: Upkeep) -> None:
    batches, held, troubles = 60, [], []
    done = threading.Event()

    def append() -> None:
        for batch in range(1, batches + 1):
            # Every tenth brings a new column, which a compaction under way cannot be committed over.
            table_ = rows(batch)
            if batch % 10 == 0:
                table_ = table_.append_column(f"new{batch}", pa.array([float(batch)]))
            results.append(batch, [table_])
        done.set()

    replaced = 0

    def maintain() -> None:
        nonlocal replaced
        while not done.is_set():
            replaced += upkeep.compact()
            upkeep.checkpoint()
            upkeep.vacuum(3600)

    def read() -> None:
        while not done.is_set():
            if (dataset := results.dataset()) is not None:
                held.append((dataset, dataset.count_rows()))

    def guarded(work: Any) -> Any:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                troubles.append(error)
                done.set()

        return run

    threads = [threading.Thread(target=guarded(work)) for work in (append, maintain, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert troubles == []
    assert replaced > 0
    assert cells(results) == {f"c{batch}": 1 for batch in range(1, batches + 1)}
    for dataset, count in held[:: max(1, len(held) // 20)]:  # each still reads what it read first
        assert len(set(dataset.to_table(columns=["cell"])["cell"].to_pylist())) == count


CHILD = """
import sys
import pyarrow as pa
from creditgrid.service.results import upkeep as module
from creditgrid.service.results.table import Results
import threading
from pathlib import Path

module.LEVELS, module.CHECKPOINT_EVERY = ((0, 2**20, 6),), 6
results = Results(Path(sys.argv[1]), "ledger")
results.repair()
upkeep = module.Upkeep(results)

def maintain():
    while True:
        upkeep.compact()
        upkeep.checkpoint()
        upkeep.vacuum(0.5)

print("started", flush=True)
batch = (results.newest() or 0) + 1
threading.Thread(target=maintain, daemon=True).start()
while True:
    results.append(batch, [pa.table({"cell": [f"{batch}/{i}" for i in range(50)], "experiment": ["noop"] * 50})])
    print(batch, flush=True)
    batch += 1
"""


@pytest.mark.slow
def test_a_process_killed_at_any_moment_leaves_every_batch_once(tmp_path: Path) -> None:
    path = tmp_path / "results"
    chance = random.Random(4)
    reported = 0
    for _ in range(15):
        with subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "started\n"
            timer = threading.Timer(chance.uniform(0.0, 0.5), child.kill)
            timer.start()
            for line in child.stdout:
                reported = max(reported, int(line)) if line.endswith("\n") else reported
            assert child.wait() == -signal.SIGKILL
        results = Results(path, "ledger")
        results.repair()
        newest = results.newest() or 0
        assert newest in (reported, reported + 1)  # it may have died between the commit and the report
        reported = newest
        assert cells(results) == {f"{batch}/{i}": 1 for batch in range(1, newest + 1) for i in range(50)}
        if newest:
            assert data_files(path) == len(DeltaTable(path).file_uris())
            assert TableLog(path).strays() == []
    assert reported >= 10
