"""The results table after a power cut: torn files are set aside, and damage beyond repair is refused."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import creditgrid_noop as noop
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from creditgrid.core.errors import CreditGridError
from creditgrid.core.rows import table
from creditgrid.service.results import upkeep as module
from creditgrid.service.results.delta_log import ASIDE, LAST_CHECKPOINT, LOG, Repair
from creditgrid.service.results.table import Results
from creditgrid.service.results.upkeep import Upkeep


def rows(*xs: int, **values: object) -> pa.Table:
    return table(noop.EXPERIMENT, [{"cell": f"c{x}", "experiment": "noop", "x": x, **values} for x in xs])


def cells(results: Results) -> Counter[str]:
    dataset = results.dataset()
    return Counter() if dataset is None else Counter(dataset.to_table(columns=["cell"])["cell"].to_pylist())


def fill(path: Path, batches: int) -> None:
    results = Results(path, "ledger")
    for batch in range(1, batches + 1):
        results.append(batch, [rows(batch)])


def commit(path: Path, version: int) -> Path:
    return path / LOG / f"{version:020}.json"


def added(path: Path, version: int) -> Path:
    """The one file that a commit added."""
    before = set(DeltaTable(path, version=version - 1).file_uris()) if version else set()
    (found,) = set(DeltaTable(path, version=version).file_uris()) - before
    return Path(found)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def nought(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def nought_half(path: Path) -> None:
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + bytes(len(content) - half))


def cut_last_line(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


TEARS: tuple[Callable[[Path], None], ...] = (Path.unlink, empty, halve, nought, nought_half)


@pytest.mark.parametrize("tear", [empty, halve, nought, nought_half, cut_last_line])
@pytest.mark.parametrize("batches", [1, 3])
def test_a_torn_last_commit_is_set_aside_and_its_batch_comes_again(
    tmp_path: Path, tear: Callable[[Path], None], batches: int
) -> None:
    path = tmp_path / "results"
    fill(path, batches)
    tear(commit(path, batches - 1))
    torn = commit(path, batches - 1).read_bytes()
    results = Results(path, "ledger")
    assert results.repair() == Repair((batches - 1,), ())
    assert not results.holds(batches)
    assert cells(results) == {f"c{batch}": 1 for batch in range(1, batches)}
    (aside,) = (path / ASIDE).iterdir()
    assert aside.read_bytes() == torn
    results.append(batches, [rows(batches)])
    assert cells(results) == {f"c{batch}": 1 for batch in range(1, batches + 1)}
    assert Results(path, "ledger").repair() == Repair()


@pytest.mark.parametrize("tear", [*TEARS, grow])
def test_a_last_commit_whose_file_is_torn_is_set_aside(tmp_path: Path, tear: Callable[[Path], None]) -> None:
    path = tmp_path / "results"
    fill(path, 3)
    tear(added(path, 2))
    results = Results(path, "ledger")
    assert results.repair() == Repair((2,), ())
    assert results.newest() == 2
    results.append(3, [rows(3)])
    assert cells(results) == {"c1": 1, "c2": 1, "c3": 1}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_compaction_goes_with_the_append_that_came_before_both_were_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tear: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(module, "LEVELS", ((0, 2**20, 3),))
    path = tmp_path / "results"
    fill(path, 3)
    results = Results(path, "ledger")
    assert Upkeep(results).compact() == 3
    results.append(4, [rows(4)])
    tear(commit(path, 3))
    again = Results(path, "ledger")
    assert again.repair() == Repair((3, 4), ())
    assert again.newest() == 3
    assert cells(again) == {"c1": 1, "c2": 1, "c3": 1}
    again.append(4, [rows(4)])
    assert cells(again) == {"c1": 1, "c2": 1, "c3": 1, "c4": 1}


def test_a_torn_compaction_at_the_end_loses_no_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEVELS", ((0, 2**20, 3),))
    path = tmp_path / "results"
    fill(path, 3)
    assert Upkeep(Results(path, "ledger")).compact() == 3
    cut_last_line(commit(path, 3))  # the line that adds; those that remove are there
    results = Results(path, "ledger")
    assert results.repair() == Repair((3,), ())
    assert results.holds(3)
    assert cells(results) == {"c1": 1, "c2": 1, "c3": 1}


def test_what_a_compaction_replaced_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEVELS", ((0, 2**20, 3),))
    path = tmp_path / "results"
    fill(path, 3)
    results = Results(path, "ledger")
    assert Upkeep(results).compact() == 3
    assert Upkeep(results).vacuum(0) == 3
    again = Results(path, "ledger")
    assert again.repair() == Repair()
    assert cells(again) == {"c1": 1, "c2": 1, "c3": 1}


def test_what_is_whole_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "results"
    assert Results(path, "ledger").repair() == Repair()
    assert not path.exists()
    fill(path, 2)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert Results(path, "ledger").repair() == Repair()
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("what", "tear"),
    [*((commit, tear) for tear in TEARS), *((added, tear) for tear in (Path.unlink, empty, halve, grow))],
)
def test_damage_that_later_commits_depend_on_is_refused(
    tmp_path: Path, what: Callable[[Path, int], Path], tear: Callable[[Path], None]
) -> None:
    path = tmp_path / "results"
    fill(path, 5)
    victim = what(path, 1)
    tear(victim)
    before = sorted(path.rglob("*"))
    with pytest.raises(CreditGridError, match=f"cannot be repaired here: .*{victim.name}.*from a backup; or move it"):
        Results(path, "ledger").repair()
    assert sorted(path.rglob("*")) == before


def test_two_appends_are_never_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "results"
    fill(path, 4)
    added(path, 2).unlink()  # batch 4 came after batch 3 was on the disk
    with pytest.raises(CreditGridError, match="later commits depend on it"):
        Results(path, "ledger").repair()
    assert commit(path, 3).exists()


# -- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpointed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of twelve batches with checkpoints at versions 7 and 11, and no commit before 7."""
    monkeypatch.setattr(module, "CHECKPOINT_EVERY", 4)
    path = tmp_path / "results"
    results = Results(path, "ledger")
    for batch in range(1, 13):
        results.append(batch, [rows(batch)])
        assert Upkeep(results).checkpoint() == (batch % 4 == 0)
    assert sorted(int(file.name[:20]) for file in (path / LOG).glob("*.checkpoint.parquet")) == [7, 11]
    assert min(int(file.stem) for file in (path / LOG).glob("*.json")) == 7
    return path


def newest_checkpoint(path: Path) -> Path:
    return max((path / LOG).glob("*.checkpoint.parquet"))


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_checkpoint_is_set_aside_where_the_log_reaches(checkpointed: Path, tear: Callable[[Path], None]) -> None:
    tear(newest_checkpoint(checkpointed))
    results = Results(checkpointed, "ledger")
    done = results.repair()
    assert done.commits == ()
    assert LAST_CHECKPOINT in done.checkpoints
    assert not newest_checkpoint(checkpointed).name.startswith(f"{11:020}")
    assert results.newest() == 12
    assert cells(results) == {f"c{batch}": 1 for batch in range(1, 13)}
    results.append(13, [rows(13)])
    assert Upkeep(results).checkpoint()
    assert cells(Results(checkpointed, "ledger")) == {f"c{batch}": 1 for batch in range(1, 14)}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 99}', bytes(40)])
def test_a_torn_pointer_to_the_checkpoint_is_set_aside(checkpointed: Path, content: bytes) -> None:
    (checkpointed / LOG / LAST_CHECKPOINT).write_bytes(content)
    results = Results(checkpointed, "ledger")
    assert results.repair() == Repair((), (LAST_CHECKPOINT,))
    assert cells(results) == {f"c{batch}": 1 for batch in range(1, 13)}
    assert results.holds(12)


def test_checkpoints_that_all_are_torn_are_refused(checkpointed: Path) -> None:
    for checkpoint in (checkpointed / LOG).glob("*.checkpoint.parquet"):
        halve(checkpoint)
    with pytest.raises(CreditGridError, match="the commits that it contains were removed"):
        Results(checkpointed, "ledger").repair()


@pytest.mark.parametrize("tear", [empty, cut_last_line])
def test_a_torn_last_commit_above_a_checkpoint(checkpointed: Path, tear: Callable[[Path], None]) -> None:
    Results(checkpointed, "ledger").append(13, [rows(13)])
    tear(commit(checkpointed, 12))
    results = Results(checkpointed, "ledger")
    assert results.repair() == Repair((12,), ())
    assert results.newest() == 12


def test_a_file_that_only_the_checkpoint_knows_of_is_missed(checkpointed: Path) -> None:
    victim = Path(DeltaTable(checkpointed).file_uris()[-1])
    victim.unlink()
    with pytest.raises(CreditGridError, match=f"{victim.name} is missing.*from a backup"):
        Results(checkpointed, "ledger").repair()


# -- synced --------------------------------------------------------------------------------------------------------


class Disk:
    """Notes in which order files are synced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synced: list[Path] = []
        original = os.fsync

        def fsync(handle: int) -> None:
            self.synced.append(Path(f"/proc/self/fd/{handle}").readlink())
            original(handle)

        monkeypatch.setattr(os, "fsync", fsync)


def test_a_batch_is_on_the_disk_when_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    path = tmp_path / "results"
    results = Results(path, "ledger")
    for version in range(3):
        disk.synced.clear()
        results.append(version + 1, [rows(version)])
        data, log = added(path, version), commit(path, version)
        parent = [tmp_path] if version == 0 else []
        assert disk.synced == [data, data.parent, path, log, log.parent, *parent]


def test_a_compaction_and_a_checkpoint_are_synced_before_they_replace_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEVELS", ((0, 2**20, 3),))
    monkeypatch.setattr(module, "CHECKPOINT_EVERY", 3)
    path = tmp_path / "results"
    fill(path, 3)
    results = Results(path, "ledger")
    results.repair()
    disk = Disk(monkeypatch)
    assert Upkeep(results).compact() == 3
    (data,) = (Path(file) for file in DeltaTable(path).file_uris())
    assert disk.synced == [data, data.parent, path, commit(path, 3), path / LOG]
    disk.synced.clear()
    assert Upkeep(results).checkpoint()
    assert disk.synced == [newest_checkpoint(path), path / LOG / LAST_CHECKPOINT, path / LOG]


def test_a_batch_that_could_not_be_synced_is_synced_by_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results"
    results = Results(path, "ledger")
    results.append(1, [rows(1)])

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            results.append(2, [rows(2)])
    disk = Disk(monkeypatch)
    results.append(2, [rows(2)])
    assert added(path, 1) in disk.synced
    assert commit(path, 1) in disk.synced
    assert cells(results) == {"c1": 1, "c2": 1}


def test_what_a_process_left_unsynced_is_synced_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results"
    fill(path, 5)
    disk = Disk(monkeypatch)
    Results(path, "ledger").repair()
    assert {commit(path, 3), commit(path, 4), added(path, 3), added(path, 4)} <= set(disk.synced)
