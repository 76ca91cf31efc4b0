"""A lock file has one owner, which it names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from creditgrid.service import pid_lock

OWNER = """
import sys
from pathlib import Path
from creditgrid.service import pid_lock
lock = pid_lock.acquire(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


def test_another_process_is_named_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", OWNER, str(path)], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        for _ in range(2):  # an attempt does not change the file
            with pytest.raises(pid_lock.AlreadyLocked) as caught:
                pid_lock.acquire(path)
            assert caught.value.owner == str(process.pid)
        process.kill()
    pid_lock.acquire(path).release()


def test_a_released_lock_leaves_its_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    pid_lock.acquire(path).release()
    assert path.read_text() == f"{os.getpid()}\n"
    lock = pid_lock.acquire(path)
    with pytest.raises(pid_lock.AlreadyLocked, match=str(os.getpid())):
        pid_lock.acquire(path)
    lock.release()


def test_a_file_that_cannot_be_locked(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Is a directory"):
        pid_lock.acquire(tmp_path)
