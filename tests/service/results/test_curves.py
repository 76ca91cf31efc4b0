"""The table of curves: one row an epoch of a run, whoever sends what how often, and columns that fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake.exceptions import DeltaError

from creditgrid.service.results import curves as module
from creditgrid.service.results import delta_table, upkeep
from creditgrid.service.results.curves import Curves, RunPoints
from creditgrid.service.results.upkeep import Upkeep
from creditgrid.workers.runner import Point


@pytest.fixture
def curves(tmp_path: Path) -> Curves:
    return Curves(tmp_path / "curves", "ledger")


def run(
    epochs: Sequence[int],
    run: str = "r",
    kind: str = "train",
    parameters: Mapping[str, Any] | None = None,
    **metrics: float | None,
) -> RunPoints:
    points = [Point(epoch, metrics or {"loss": 1 / (1 + epoch)}, 1e9 + epoch, 1, "h", "cpu") for epoch in epochs]
    return RunPoints(run, f"{run}-last", kind, 2, "s1", parameters or {"seed": 3}, points)


def epochs(curves: Curves, run: str = "r") -> list[int]:
    dataset = curves.dataset()
    if dataset is None:
        return []
    rows = dataset.to_table(columns=["run", "epoch"]).to_pylist()
    return sorted(row["epoch"] for row in rows if row["run"] == run)


def table(curves: Curves) -> pa.Table:
    dataset = curves.dataset()
    assert dataset is not None
    return dataset.to_table()


def test_a_row_says_what_was_measured_where(curves: Curves) -> None:
    assert curves.add([run([4], parameters={"seed": 3, "rule": "bp", "lr": 0.1, "flag": True, "none": None})]) == 1
    (row,) = table(curves).to_pylist()
    assert row["measured_at"].timestamp() == 1e9 + 4
    del row["measured_at"]
    assert row == {
        "run": "r",
        "stage": "r-last",
        "kind": "train",
        "kind_version": 2,
        "sweep": "s1",
        "epoch": 4,
        "loss": 0.2,
        "seed": 3,
        "rule": "bp",
        "lr": 0.1,
        "flag": True,
        "attempt": 1,
        "host": "h",
        "device": "cpu",
    }


def test_points_that_the_table_holds_are_left_out(curves: Curves, tmp_path: Path) -> None:
    assert curves.add([run([0, 1, 2])]) == 3
    assert curves.add([run([0, 1, 2, 3, 4])]) == 2
    assert curves.add([run([0, 1]), run([1, 2], run="other")]) == 2
    again = Curves(tmp_path / "curves", "ledger")  # after a restart
    again.repair()
    assert again.add([run([0, 1, 2, 3, 4, 5]), run([1, 2], run="other")]) == 1
    assert epochs(again) == [0, 1, 2, 3, 4, 5]
    assert epochs(again, "other") == [1, 2]


def test_two_calls_of_a_run_in_one_append(curves: Curves) -> None:
    assert curves.add([run([1, 2, 3]), run([1, 2, 3, 4, 5]), run([1])]) == 5
    assert epochs(curves) == [1, 2, 3, 4, 5]


def test_what_is_remembered_is_bounded(curves: Curves, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECENT_RUNS", 2)
    for name in "abcd":
        curves.add([run([1, 2], run=name)])
    assert curves._known is not None
    assert len(curves._known._recent) <= 2
    assert len(curves._known._hashes) >= 2
    assert curves.add([run([1, 2, 3], run=name) for name in "abcd"]) == 4
    assert [epochs(curves, name) for name in "abcd"] == [[1, 2, 3]] * 4


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), DeltaError("commit failed")])
def test_an_append_that_failed_comes_again_and_each_epoch_stands_once(
    curves: Curves, monkeypatch: pytest.MonkeyPatch, committed: bool, fault: Exception
) -> None:
    curves.add([run([1])])
    original = delta_table.write_deltalake

    def broken(*arguments: Any, **options: Any) -> None:
        if committed:
            original(*arguments, **options)
        raise fault

    monkeypatch.setattr(delta_table, "write_deltalake", broken)
    with pytest.raises(type(fault)):
        curves.add([run([1, 2])])
    monkeypatch.setattr(delta_table, "write_deltalake", original)
    assert curves.add([run([1, 2])]) == (0 if committed else 1)
    assert curves.add([run([1, 2, 3])]) == 1
    assert epochs(curves) == [1, 2, 3]


def test_what_an_earlier_append_left_unsynced_is_synced(curves: Curves, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("the disk")

    monkeypatch.setattr(curves.log, "sync", broken)
    with pytest.raises(OSError, match="the disk"):
        curves.add([run([1])])
    synced: list[int] = []
    monkeypatch.setattr(curves.log, "sync", lambda: synced.append(1))
    assert curves.add([run([1])]) == 0
    assert synced == [1]


def test_upkeep_keeps_every_epoch_once(curves: Curves, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "LEVELS", ((0, 2**30, 3),))
    monkeypatch.setattr(upkeep, "CHECKPOINT_EVERY", 4)
    keeper = Upkeep(curves)
    for epoch in range(1, 11):
        curves.add([run(range(1, epoch + 1)), run(range(1, epoch + 1), "f", "fit")])
        keeper.compact()
        keeper.checkpoint()
    assert keeper.vacuum(0) > 0
    assert epochs(curves) == epochs(curves, "f") == list(range(1, 11))
    again = Curves(curves.path, "ledger")
    again.repair()
    assert again.add([run(range(1, 11))]) == 0


# -- columns -------------------------------------------------------------------------------------------------------


def test_metrics_that_have_the_name_of_a_parameter_or_a_column_are_prefixed(curves: Curves) -> None:
    metrics = {"width": 1.0, "seed": 2.0, "lr": 3.0, "epoch": 4.0, "loss": 5.0, "run": 6.0}
    point = Point(1, metrics, 1e9, 1, "h", "cpu")
    curves.add([RunPoints("r", "r", "a", 1, "s1", {"Width": 8}, [point])])
    curves.add([run([1], run="t", parameters={"seed": 7, "lr": 0.5})])
    first, second = sorted(table(curves).to_pylist(), key=lambda row: row["run"])
    assert (first["Width"], first["metric_width"], first["metric_seed"], first["metric_lr"]) == (8, 1.0, 2.0, 3.0)
    assert (first["metric_epoch"], first["loss"], first["epoch"], first["metric_run"]) == (4.0, 5.0, 1, 6.0)
    assert (second["seed"], second["lr"], first["seed"], second["run"]) == (7, 0.5, None, "t")


def test_parameters_of_other_types_have_their_own_columns(curves: Curves) -> None:
    for number, value in enumerate([1, "one", 1.5, True, [1, 2], 2]):
        curves.add([run([1], run=str(number), parameters={"size": value, "rate": 0.5 if number else 1.0})])
    rows = sorted(table(curves).to_pylist(), key=lambda row: row["run"])
    names = ["size", "size_string", "size_double", "size_bool", "size_string", "size"]
    assert [row[name] for row, name in zip(rows, names, strict=True)] == [1, "one", 1.5, True, "[1, 2]", 2]
    curves.add([run([1], run="w", parameters={"rate": 3})])
    assert table(curves).filter(pa.compute.field("run") == "w")["rate"].to_pylist() == [3.0]


def test_parameters_with_the_name_of_a_column_are_left_out(curves: Curves) -> None:
    curves.add([run([1], parameters={"epoch": 9, "host": "x", "Kind": "y", "seed": 1})])
    (row,) = table(curves).to_pylist()
    assert (row["epoch"], row["host"], row["kind"], row["seed"]) == (1, "h", "train", 1)
    assert "Kind" not in row


def test_columns_are_bounded(curves: Curves, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_COLUMNS", 16)
    for number in range(20):
        curves.add([run([1], run=str(number), **{f"m{number}": 1.0})])
    assert len(table(curves).schema) == 16
    assert table(curves).num_rows == 20


def test_an_empty_table_has_the_columns_of_trainings(curves: Curves) -> None:
    names = curves.files().schema.names
    assert names[:6] == ["run", "stage", "kind", "kind_version", "sweep", "epoch"]
    assert {"train_loss", "test_accuracy", "fit_loss", "measured_at"} <= set(names)


def test_a_run_that_cannot_be_written_does_not_block_others(curves: Curves) -> None:
    assert curves.add([run([1], parameters={"text": "\ud800"}), run([1, 2], run="other")]) == 2
    assert curves.add([run([1], parameters={"text": "\ud800"})]) == 0
    assert curves.add([run([1], kind="k" * 300)]) == 0
    assert (epochs(curves), epochs(curves, "other")) == ([], [1, 2])


def test_an_append_that_failed_forgets_the_columns(curves: Curves, monkeypatch: pytest.MonkeyPatch) -> None:
    curves.add([run([1])])
    original = delta_table.write_deltalake

    def broken(*arguments: Any, **options: Any) -> None:
        original(*arguments, **options)
        raise DeltaError("unclear")

    monkeypatch.setattr(delta_table, "write_deltalake", broken)
    with pytest.raises(DeltaError):
        curves.add([run([1], run="new", parameters={"size": 1.5})])
    monkeypatch.setattr(delta_table, "write_deltalake", original)
    assert curves.add([run([1], run="more", parameters={"size": "big"})]) == 1
    assert table(curves)["size_string"].drop_null().to_pylist() == ["big"]


def test_points_that_come_twice_at_a_time_are_written_once(curves: Curves) -> None:
    assert curves.add([run([1, 2, 3, 1, 2, 3, 4]), run([2, 5])]) == 5
    assert epochs(curves) == [1, 2, 3, 4, 5]
