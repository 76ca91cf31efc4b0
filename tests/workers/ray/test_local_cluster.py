"""The folder of a store's cluster."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from creditgrid.workers.ray.local_cluster import LocalCluster


def test_a_store_always_has_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/r")
    one, again, two = (LocalCluster(tmp_path / name).folder for name in ("one", "one", "two"))
    assert one == again != two
    assert one.parent.parent == Path("/tmp/r")


def test_a_temporary_folder_with_a_long_path_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/var/folders/zz/zyxvpxvq6csfxvn_n0000000000000/T")  # as on macOS
    folder = LocalCluster(tmp_path).folder
    assert folder.parent.parent == Path("/tmp")
    # Ray's longest socket below it.
    longest = folder / "session_2026-11-22_07-58-44_123456_1234567" / "sockets" / "plasma_store.12345"
    assert len(str(longest)) <= 107


def test_only_the_user_may_enter_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("creditgrid.workers.ray.local_cluster.MAX_PATH", 1000)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    cluster = LocalCluster(tmp_path / "store")
    cluster.private.mkdir(mode=0o777)  # an earlier version, or Ray, left it open
    cluster.private.chmod(0o777)
    cluster.clear()
    assert stat.S_IMODE(cluster.private.stat().st_mode) == 0o700
    token = Path(cluster.environment()["RAY_AUTH_TOKEN_PATH"])
    first = token.read_text()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    cluster.clear()
    assert token.read_text() != first
    assert token.parent == cluster.private
    cluster.remove()
    assert not cluster.private.exists()


def test_a_folder_that_leads_elsewhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("creditgrid.workers.ray.local_cluster.MAX_PATH", 1000)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    cluster = LocalCluster(tmp_path / "store")
    (tmp_path / "elsewhere").mkdir()
    cluster.private.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="RAY_TMPDIR"):
        cluster.clear()
