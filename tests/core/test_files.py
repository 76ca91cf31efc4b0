"""Files that are complete on the disk or absent, also after a crash."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from creditgrid.core.files import atomic_file, sync, synced_file


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is synced, in order."""
    names: list[str] = []
    original = os.fsync

    def fsync(handle: int) -> None:
        names.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        original(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return names


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_and_directories_are_synced_in_the_order_given(tmp_path: Path, synced: list[str]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"b")
    sync(tmp_path / "a" / "b", tmp_path / "a", tmp_path)
    assert synced == ["b", "a", tmp_path.name]
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "none")


def test_a_synced_file_is_on_the_disk_with_all_its_bytes(tmp_path: Path, synced: list[str]) -> None:
    with synced_file(tmp_path / "file") as file:
        file.write(b"x" * 100_000)
        assert synced == []
    assert synced == ["file"]
    assert (tmp_path / "file").read_bytes() == b"x" * 100_000


def test_an_atomic_file_replaces_what_was_there_once_it_is_synced(tmp_path: Path, synced: list[str]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
        (part,) = set(names(tmp_path)) - {"file"}
        assert part.startswith(".file.")
    assert synced == [part]
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


def test_an_atomic_file_has_the_temporary_name_that_it_is_given(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "file", ".other"):
        assert names(tmp_path) == [".other"]
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("there", [True, False])
def test_an_atomic_file_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    path = tmp_path / "file"
    if there:
        path.write_bytes(b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write_half() -> None:
        with atomic_file(path) as file:
            file.write(b"new")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), atomic_file(path) as file:
        file.write(b"new")
    assert names(tmp_path) == (["file"] if there else [])
    if there:
        assert path.read_bytes() == b"old"


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with atomic_file(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()))
    reader.start()
    with atomic_file(path) as file:
        file.write(b"rows")
    reader.join(10)
    assert found == [b"rows"]
    assert path.is_fifo()
