"""Upkeep in the background: each duty in its time, and none that can stop the others, or the service."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import creditgrid_noop as noop
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from structlog.testing import capture_logs

from creditgrid.core.errors import ArtifactError
from creditgrid.core.rows import table
from creditgrid.service import maintenance as module
from creditgrid.service.maintenance import LONGEST_PAUSE_S, QUERY_GRACE_S, Maintenance
from creditgrid.service.results import upkeep
from creditgrid.service.results.table import Results


class Part:
    """Upkeep and retention in one: notes what is asked, and fails where a test says so."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.graces: list[float] = []
        self.faults: dict[str, Exception] = {}

    def _do(self, name: str) -> None:
        self.asked.append(name)
        if name in self.faults:
            raise self.faults[name]

    def compact(self) -> None:
        self._do("compact")

    def checkpoint(self) -> None:
        self._do("checkpoint")

    def vacuum(self, grace_s: float) -> None:
        self.graces.append(grace_s)
        self._do("vacuum")

    def tidy(self) -> None:
        self._do("tidy")

    def bound_logs(self) -> None:
        self._do("logs")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", clock)
    return clock


def made(part: Part) -> Maintenance:
    parts: Any = ({"": part}, part)
    return Maintenance(*parts)


def test_each_duty_is_done_in_its_time(clock: Clock) -> None:
    part = Part()
    maintenance = made(part)
    assert maintenance.step() == 5.0
    assert part.asked == ["compact", "checkpoint", "vacuum", "tidy", "logs"]
    part.asked.clear()
    clock.now += 4.9
    assert maintenance.step() == pytest.approx(0.1)
    assert part.asked == []
    for _ in range(120):
        clock.now += 5.0
        maintenance.step()
    counts = {name: part.asked.count(name) for name in part.asked}
    assert counts == {"compact": 120, "checkpoint": 120, "vacuum": 10, "tidy": 1, "logs": 60}
    assert set(part.graces) == {QUERY_GRACE_S}


@pytest.mark.parametrize(
    "fault", [OSError(28, "No space left on device"), DeltaError("torn"), ArtifactError("x"), KeyError("a bug")]
)
def test_a_duty_that_fails_is_logged_and_tried_less_and_less_often_while_the_others_continue(
    clock: Clock, fault: Exception
) -> None:
    part = Part()
    part.faults["compact"] = fault
    maintenance = made(part)
    times = []
    with capture_logs() as logs:
        while clock.now < 1000 + 4 * LONGEST_PAUSE_S:
            before = part.asked.count("compact")
            maintenance.step()
            if part.asked.count("compact") > before:
                times.append(clock.now)
            clock.now += 5.0
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert pauses[:7] == [10.0, 20.0, 40.0, 80.0, 160.0, 320.0, LONGEST_PAUSE_S]
    assert max(pauses) == LONGEST_PAUSE_S
    logged = [line for line in logs if line["duty"] == "compact"]
    assert len(logged) == len(times)
    assert logged[0]["error"] == str(fault)
    assert logged[0]["exc_info"] is isinstance(fault, KeyError)  # a bug is logged with its traceback
    assert part.asked.count("checkpoint") == 4 * LONGEST_PAUSE_S / 5
    assert maintenance.counts()["compact"] == (0, len(times))
    assert maintenance.counts()["checkpoint"][1] == 0
    del part.faults["compact"]
    clock.now += LONGEST_PAUSE_S
    maintenance.step()
    done = part.asked.count("compact")
    clock.now += 5.0
    maintenance.step()
    assert part.asked.count("compact") == done + 1  # as often as ever


def test_a_stop_waits_for_the_current_duty_and_starts_no_other() -> None:
    part, started, continues = Part(), threading.Event(), threading.Event()

    def slow() -> None:
        started.set()
        assert continues.wait(10)
        part.asked.append("compacted")

    part.compact = slow  # type: ignore[method-assign]
    maintenance = made(part)
    maintenance.start()
    assert started.wait(10)
    stopper = threading.Thread(target=maintenance.stop)
    stopper.start()
    stopper.join(0.1)
    assert stopper.is_alive()
    continues.set()
    stopper.join(10)
    assert not stopper.is_alive()
    assert part.asked == ["compacted"]


def test_a_stop_before_a_start_is_a_stop() -> None:
    made(Part()).stop()


def test_a_table_stays_small_while_batches_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "LEVELS", ((0, 2**20, 6),))
    monkeypatch.setattr(upkeep, "CHECKPOINT_EVERY", 6)
    monkeypatch.setattr(module, "QUERY_GRACE_S", 0.3)
    path = tmp_path / "results"
    results, part = Results(path, "ledger"), Part()
    parts: Any = ({"": upkeep.Upkeep(results)}, part)
    maintenance = Maintenance(*parts)
    for duty in maintenance._duties:
        duty.every_s = 0.01
    maintenance.start()
    for batch in range(1, 61):
        results.append(batch, [table(noop.EXPERIMENT, [{"cell": f"c{batch}", "experiment": "noop", "x": batch}])])
    deadline = time.monotonic() + 20
    while len(list(path.glob("experiment=*/*"))) > 8 and time.monotonic() < deadline:
        time.sleep(0.05)
    maintenance.stop()
    assert all(failed == 0 for _, failed in maintenance.counts().values())
    assert len(list(path.glob("experiment=*/*"))) <= 8
    assert len(list((path / "_delta_log").iterdir())) < 40
    dataset = results.dataset()
    assert dataset is not None
    assert sorted(dataset.to_table()["x"].to_pylist()) == list(range(1, 61))
    assert DeltaTable(path).transaction_version("ledger") == 60
