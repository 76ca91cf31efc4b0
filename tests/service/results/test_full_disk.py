"""A disk that is full for a while: a real one, of a few megabytes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweeping import House, quick

from creditgrid.core.states import State
from creditgrid.workers.local_runner import LocalRunner

MEGABYTES = 24


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Take all the room there is."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(64 * 1024))
        except OSError:
            return filler


@pytest.mark.parametrize("base", ["none", "ok"], ids=["rows", "artifacts"])
def test_a_full_disk_is_reported_and_sweeps_continue_when_there_is_space(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    quick(monkeypatch, POLL_S=0.05, COMMIT_PAUSE_S=0.2, LEDGER_PAUSE_S=0.2)
    house = House(small_disk, lambda store: LocalRunner(store, workers=2))
    axes = {"x": list(range(100)), "group": list(range(20))}
    sweep = house.submit(axes=axes, fixed={"base": base}, retry={"max": 100, "backoff_s": 0.1})
    filler = fill(small_disk)
    house.scheduler.start()
    deadline = time.monotonic() + 60
    while (problem := house.scheduler.problem()) is None:
        assert not house.state(sweep).finished
        assert time.monotonic() < deadline, "no problem is reported for a full disk"
        time.sleep(0.05)
    assert "cannot be" in problem
    filler.unlink()
    assert house.wait(sweep, despite_trouble=True) is State.SUCCEEDED
    assert house.counts(sweep) == {State.SUCCEEDED: 2000}
    assert house.scheduler.problem() is None
    house.scheduler.stop(5)
    house.check()
    house.close()
