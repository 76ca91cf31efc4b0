"""The folder of a store's cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from creditgrid.workers.ray.local_cluster import LocalCluster


def test_a_store_always_has_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/r")
    one, again, two = (LocalCluster(tmp_path / name).folder for name in ("one", "one", "two"))
    assert one == again != two
    assert one.parent == Path("/tmp/r")


def test_a_temporary_folder_with_a_long_path_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/var/folders/zz/zyxvpxvq6csfxvn_n0000000000000/T")  # as on macOS
    folder = LocalCluster(tmp_path).folder
    assert folder.parent == Path("/tmp")
    # Ray's longest socket below it.
    longest = folder / "session_2026-11-22_07-58-44_123456_1234567" / "sockets" / "plasma_store.12345"
    assert len(str(longest)) <= 107
