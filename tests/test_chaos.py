"""The fault injector: its checks find what is wrong, its faults strike at their points, and a short run of it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from chaos import checks
from chaos.checks import Rows, compare_artifacts, compare_curves, compare_rows, curves_of, leftovers, rows_of
from chaos.faults import FAULTS, fault_sequence
from chaos.service import INJECTED
from chaos.sweeps import Work
from chaos.watching import Observed
from deltalake import DeltaTable, write_deltalake

ROOT = Path(__file__).parent.parent
FAULTS_OF_CI = "service", "worker", "raylet", "cluster", "driver", "artifact", "delta", "compaction"
SEED = 5


def table(**changed: list[Any]) -> pa.Table:
    """Two cells, one of two rows."""
    columns: dict[str, list[Any]] = {
        "cell": ["a" * 64, "a" * 64, "b" * 64],
        "sweep": ["s1", "s1", "s2"],
        "seconds": [0.1, 0.1, 0.2],
        "layer": [0, 1, 0],
        "value": [0.5, 0.0, None],
        "diverged": [False, False, True],
    }
    return pa.table(columns | changed)


def kinds(found: checks.Compared) -> list[str]:
    return [violation.kind for violation in found.violations]


def test_the_same_rows_in_another_order_from_another_sweep_are_the_same() -> None:
    other = table(sweep=["s9"] * 3, seconds=[7.0] * 3).take([2, 1, 0])
    assert compare_rows(rows_of(other), rows_of(table())) == checks.Compared()
    wider = other.append_column("of_another_experiment", pa.nulls(3, pa.float64()))
    assert compare_rows(rows_of(wider), rows_of(table())) == checks.Compared()


def test_an_epoch_that_is_lost_twice_or_other_is_found() -> None:
    whole = pa.table({"run": ["r", "r"], "kind": ["train"] * 2, "epoch": [1, 2], "train_loss": [0.5, 0.25]})
    expected = curves_of(whole)
    assert compare_curves(curves_of(whole.take([1, 0])), expected) == []
    for other, kind in (
        (whole.take([0]), "curves: lost cell or row"),
        (whole.take([0, 1, 1]), "curves: cell with more rows than it has"),
        (whole.set_column(3, "train_loss", pa.array([0.5, 0.3])), "curves: other bits in column train_loss"),
    ):
        assert [violation.kind for violation in compare_curves(curves_of(other), expected)] == [kind]


@pytest.mark.parametrize("kept", [[0, 1], [0, 2]], ids=["a cell", "one row of a cell"])
def test_a_lost_row_is_found(kept: list[int]) -> None:
    found = compare_rows(rows_of(table().take(kept)), rows_of(table()))
    assert kinds(found) == ["lost cell or row"]
    assert len(found.lost) == 1


@pytest.mark.parametrize("rows", [[0, 1, 2, 2], [0, 1, 1, 2], [0, 1, 2, 0, 1, 2]])
def test_a_doubled_row_is_found(rows: list[int]) -> None:
    found = compare_rows(rows_of(table().take(rows)), rows_of(table()))
    assert kinds(found) == ["cell with more rows than it has"]
    assert len(found.twice) == (2 if len(rows) == 6 else 1)


@pytest.mark.parametrize("value", [0.5 + 2**-53, -0.5, float("nan"), None])
def test_a_changed_bit_is_found(value: float | None) -> None:
    found = compare_rows(rows_of(table(value=[value, 0.0, None])), rows_of(table()))
    assert kinds(found) == ["other bits in column value"]
    assert (found.lost, found.twice) == ([], [])


def test_the_sign_of_zero_is_a_bit() -> None:
    found = compare_rows(rows_of(table(value=[0.5, -0.0, None])), rows_of(table()))
    assert kinds(found) == ["other bits in column value"]
    assert checks.bits(1.0) != checks.bits(1)
    assert checks.bits(True) != checks.bits(1)


def test_a_cell_that_nobody_asked_for_is_found() -> None:
    found = compare_rows(rows_of(table()), Rows({"a" * 64: rows_of(table()).cells["a" * 64]}))
    assert kinds(found) == ["cell nobody asked for"]


def test_other_artifacts_are_found() -> None:
    expected = {"a": "1", "b": "2"}
    assert compare_artifacts(dict(expected), expected) == []
    assert [v.kind for v in compare_artifacts({"a": "1", "b": "3"}, expected)] == ["artifact with other bytes"]
    assert [v.kind for v in compare_artifacts({"a": "1"}, expected)] == ["lost artifact"]
    assert [v.kind for v in compare_artifacts(expected | {"c": "1"}, expected)] == ["artifact nobody asked for"]


def test_a_broken_artifact_is_found(tmp_path: Path) -> None:
    from creditgrid.workers.artifacts import ArtifactStore

    store = ArtifactStore(tmp_path)
    keys = [digit * 64 for digit in "abc"]
    for key in keys:
        store.save(key, {}, {"x": pa.array([1.0]).to_numpy()}, {})
    found, violations = checks.artifacts(tmp_path)
    assert (sorted(found), violations) == (keys, [])
    assert len(set(found.values())) == 1
    (store.path(keys[0]) / "record.json").unlink()
    with (store.path(keys[1]) / "tensors.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
    _, violations = checks.artifacts(tmp_path)
    assert [v.kind for v in violations] == [
        "incomplete artifact",
        "artifact whose record has another checksum",
    ]


def test_leftover_files_are_found(tmp_path: Path) -> None:
    results = tmp_path / "results"
    write_deltalake(results, table(), partition_by=["sweep"])
    write_deltalake(results, table(), mode="append", partition_by=["sweep"])
    DeltaTable(results).optimize.compact()
    clean = leftovers(tmp_path)
    assert clean.violations() == []
    assert clean.replaced == 4

    (some,) = list((results / "sweep=s2").glob("*.parquet"))[:1]
    shutil.copy(some, some.with_name("part-of-nobody.parquet"))
    (some.parent / "part.parquet#1").touch()
    (tmp_path / "artifacts" / "ab" / ".writing-1").mkdir(parents=True)
    (tmp_path / "artifacts" / "saves").mkdir()
    (tmp_path / "artifacts" / "saves" / "abc").touch()
    (tmp_path / "artifacts" / "saves" / ".abc-1").touch()
    (tmp_path / "artifacts" / "corrupt").mkdir()
    (tmp_path / "artifacts" / "corrupt" / "abc").touch()
    (results / "_set_aside").mkdir()
    (results / "_set_aside" / "7.json").touch()
    (tmp_path / ".ledger.tmp").touch()
    found = leftovers(tmp_path)
    assert found.artifacts == [".writing-1"]
    assert found.saves == [".abc-1", "abc"]
    assert found.unlogged == ["sweep=s2/part-of-nobody.parquet", "sweep=s2/part.parquet#1"]
    assert found.aside == ["abc", "7.json"]
    assert found.other == [".ledger.tmp"]
    assert len(found.violations()) == 5


def view(state: str = "running", cells: int = 3, **counts: int) -> dict[str, Any]:
    return {"id": "s1", "name": "n", "state": state, "cells": cells, "counts": counts}


def violations(seen: Observed) -> list[str]:
    return [violation.kind for violation in seen.violations]


def test_views_that_do_not_add_up_are_found() -> None:
    seen = Observed()
    seen.view(view(pending=3))
    seen.view(view(running=2, succeeded=1))
    seen.view(view(queued=2, succeeded=1))
    seen.view(view(succeeded=3))
    seen.view(view("succeeded", succeeded=3))
    assert violations(seen) == []
    seen.view(view("succeeded", succeeded=2))
    assert violations(seen) == ["counts that do not add up", "finished cells that went back"]


def test_ends_that_do_not_last_are_found() -> None:
    seen = Observed()
    seen.view(view("failed", failed=1, pending=2))
    assert violations(seen) == ["ended sweep with open cells"]
    seen.view(view("running", failed=1, pending=2))
    assert violations(seen)[1:] == ["ended sweep that is open again"]
    seen = Observed()
    seen.view(view("failed", failed=3))
    seen.view(view("succeeded", failed=3))
    assert violations(seen) == ["ended sweep with another end"]


def test_a_cell_that_goes_back_is_found() -> None:
    seen = Observed()
    seen.cells("s1", [(0, "pending"), (1, "running")], 2)
    seen.cells("s1", [(0, "succeeded"), (1, "pending")], 2)
    assert violations(seen) == []
    seen.cells("s1", [(0, "running"), (1, "pending")], 2)
    assert violations(seen) == ["finished cell that went back"]
    seen.cells("s1", [(1, "pending")], 2)
    assert violations(seen)[1:] == ["cells missing in a view"]


def events(*types: str, begin: int = 1) -> list[dict[str, Any]]:
    at = "2026-01-01T00:00:00+00:00"
    return [{"id": begin + i, "sweep": "s1", "type": kind, "at": at, "data": {}} for i, kind in enumerate(types)]


def received(*of: dict[str, Any]) -> Observed:
    seen = Observed()
    for event in of:
        seen.event(event)
    return seen


def test_an_event_stream_that_breaks_is_found() -> None:
    whole = events("sweep.created", "call.started", "call.finished", "sweep.finished")
    seen = received(*whole)
    seen.ended("s1", whole)
    assert violations(seen) == []
    seen = received(*whole[:2], *whole[3:])
    seen.ended("s1", whole)
    assert violations(seen) == ["gap in the events over restarts"]
    assert violations(received(*whole[:2], whole[1])) == ["event ids that do not grow"]
    assert violations(received(*whole, *events("call.started", begin=5))) == ["event after the last"]
    seen = received(*whole)
    seen.ended("s1", [*whole[:1], whole[1] | {"data": {"call": 3}}, *whole[2:]])
    assert violations(seen) == ["events that changed"]


@pytest.mark.parametrize(
    ("types", "sound"),
    [
        (["sweep.created", "sweep.finished", "sweep.retried", "sweep.finished"], True),
        (["sweep.created", "sweep.finished", "sweep.extended", "sweep.finished"], True),
        (["sweep.created", "call.started"], False),
        (["sweep.created", "sweep.finished", "sweep.finished"], False),
    ],
)
def test_a_life_has_one_end(types: list[str], sound: bool) -> None:
    seen = Observed()
    seen.events["s1"] = events(*types)
    seen.ended("s1", events(*types))
    assert violations(seen) == ([] if sound else ["terminal event not exactly once"])


def test_a_seed_names_the_faults_and_every_point_comes_in_turn() -> None:
    first = list(fault_sequence(random.Random(3), 30, sorted(FAULTS)))
    assert first == list(fault_sequence(random.Random(3), 30, sorted(FAULTS)))
    assert first != list(fault_sequence(random.Random(4), 30, sorted(FAULTS)))
    assert {fault.name for fault, _ in first[: len(FAULTS)]} == FAULTS.keys()
    assert {point for _, point in first} == {"", *(point for fault in FAULTS.values() for point in fault.points)}


def test_work_is_the_same_in_every_run_and_pairs_share() -> None:
    first, second = Work(), Work()
    for family in ["slow", "science", "pair", "noop"] * 4:
        assert first.next(family) == second.next(family)
    one, other = Work().next("pair")
    assert set(one.document["axes"]["x"]) & set(other.document["axes"]["x"])


SAVE = """
import pathlib, sys, numpy
from creditgrid.workers.artifacts import ArtifactStore
ArtifactStore(pathlib.Path(sys.argv[1])).save("a" * 64, {}, {"x": numpy.ones(3)}, {})
"""
APPEND = """
import sys, pyarrow
from deltalake import write_deltalake
for n in range(1000):
    rows = pyarrow.table({"experiment": ["e"] * 50, "n": [n] * 50})
    write_deltalake(sys.argv[1], rows, mode="append", partition_by=["experiment"])
"""
COMPACT = """
import sys, pyarrow
from deltalake import DeltaTable, write_deltalake
for n in range(300):
    for _ in range(2):
        rows = pyarrow.table({"experiment": ["e"] * 50, "n": [n] * 50})
        write_deltalake(sys.argv[1], rows, mode="append", partition_by=["experiment"])
    DeltaTable(sys.argv[1]).optimize.compact()
"""
COMMIT = """
import pathlib, sys, sqlalchemy
pathlib.Path(sys.argv[1]).mkdir()
engine = sqlalchemy.create_engine(f"sqlite:///{sys.argv[1]}/ledger")
with engine.begin() as connection:
    connection.execute(sqlalchemy.text("CREATE TABLE t (x)"))
    connection.execute(sqlalchemy.text("INSERT INTO t VALUES (1)"))
"""


def struck(tmp_path: Path, point: str, program: str) -> Path:
    """Run a program with the point armed; it must be killed there."""
    armed, place = tmp_path / "armed", tmp_path / "place"
    armed.mkdir()
    (armed / point).touch()
    done = subprocess.run(
        [sys.executable, "-c", program, str(place)],
        env=os.environ | {"PYTHONPATH": str(INJECTED), "CREDITGRID_CHAOS_DIR": str(armed)},
        check=False,
        timeout=120,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert [path.name for path in armed.glob("*.struck")] == [f"{point}.struck"]
    return place


def test_a_writer_dies_before_and_after_the_rename_of_an_artifact(tmp_path: Path) -> None:
    for point, there in (("artifact-before-rename", False), ("artifact-after-rename", True)):
        (tmp_path / point).mkdir()
        place = struck(tmp_path / point, point, SAVE)
        assert (place / "aa" / ("a" * 64)).exists() is there
        assert bool(list(place.glob("aa/.writing-*"))) is not there


@pytest.mark.parametrize(("point", "version"), [("delta-before", None), ("delta-after", 0)])
def test_the_service_dies_before_and_after_a_commit_of_delta(tmp_path: Path, point: str, version: int | None) -> None:
    place = struck(tmp_path, point, APPEND)
    assert (DeltaTable(place).version() if version is not None else place.exists()) == (version or 0)


@pytest.mark.parametrize(("point", "program"), [("delta-during", APPEND), ("compaction-during", COMPACT)])
def test_the_service_dies_between_a_data_file_and_its_entry_in_the_log(
    tmp_path: Path, point: str, program: str
) -> None:
    outside: set[str] = set()
    for attempt in range(20):  # there is less than a millisecond between the two
        (tmp_path / str(attempt)).mkdir()
        place = struck(tmp_path / str(attempt), point, program)
        # The kill may have hit the very first commit.
        whole = DeltaTable.is_deltatable(str(place))
        live, removed = checks.logged_files(place / "_delta_log") if whole else (set(), set())
        outside |= {path.relative_to(place).as_posix() for path in place.glob("experiment=e/*")} - live - removed
        if outside:
            return
    raise AssertionError("each time the entry was in the log before the process was dead")


def test_the_service_dies_around_a_compaction(tmp_path: Path) -> None:
    for point, version in (("compaction-before", 1), ("compaction-after", 2)):
        (tmp_path / point).mkdir()
        place = struck(tmp_path / point, point, COMPACT)
        assert DeltaTable(place).version() == version


def test_the_service_dies_before_and_after_a_commit_of_the_ledger(tmp_path: Path) -> None:
    import sqlite3

    for point, there in (("ledger-before-commit", 0), ("ledger-after-commit", 1)):
        (tmp_path / point).mkdir()
        place = struck(tmp_path / point, point, COMMIT)
        with sqlite3.connect(place / "ledger") as connection:
            found = connection.execute("SELECT count(*) FROM t").fetchone()[0]
        connection.close()
        assert found == there


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_lost_and_nothing_twice_whatever_is_killed() -> None:
    """Every fault once; ``make chaos`` makes more."""
    faults = [argument for name in FAULTS_OF_CI for argument in ("--only", name)]
    command = [sys.executable, "-m", "tests.chaos", "--kills", str(len(FAULTS_OF_CI)), "--seed", str(SEED)]
    with subprocess.Popen([*command, *faults], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            said, _ = process.communicate(timeout=840)
        finally:
            process.terminate()  # it ends all its processes
    print(said.decode())
    assert process.returncode == 0, said.decode()
