"""Other users cannot read a service's files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import structlog

from creditgrid.service.private_files import make_private, private_umask


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_new_files_are_private(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with private_umask():
            make_private(tmp_path / "a" / "data")
            (tmp_path / "a" / "data" / "ledger").write_text("")
        (tmp_path / "other").write_text("")
    finally:
        os.umask(before)
    assert [mode(tmp_path / name) for name in ("a", "a/data", "a/data/ledger")] == [0o700, 0o700, 0o600]
    assert mode(tmp_path / "other") == 0o644


def test_what_was_open_is_closed_and_reported_once(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("")
    outside.chmod(0o644)
    data = tmp_path / "data"
    data.mkdir()
    (data / "results").mkdir(mode=0o755)
    (data / "ledger.sqlite").write_text("")
    (data / "link").symlink_to(outside)
    for path, permissions in ((data, 0o755), (data / "ledger.sqlite", 0o664)):
        path.chmod(permissions)
    with structlog.testing.capture_logs() as logs:
        make_private(data)
        make_private(data)
    assert [mode(data), mode(data / "results"), mode(data / "ledger.sqlite")] == [0o700, 0o700, 0o600]
    assert mode(outside) == 0o644
    (entry,) = logs
    assert entry["log_level"] == "warning"
    assert entry["path"] == str(data)


def test_what_cannot_be_closed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    tmp_path.chmod(0o755)
    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(PermissionError, match=f"chmod go= {tmp_path}"):
        make_private(tmp_path)
