"""Logs stay small: each, and all together; those of running calls stay."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from sweeping import House

from creditgrid.core.wire import RetentionRequest
from creditgrid.service import log_retention
from creditgrid.service.log_retention import LogRetention
from creditgrid.service.retention import Retention
from creditgrid.workers.call_log import BOUND, HEAD, CallLog, log_path

DAY = 86_400.0


@pytest.fixture
def retention(house: House) -> LogRetention:
    return LogRetention(house.ledger, house.store.root)


def put(house: House, name: str, size: int, age: float = 0.0) -> Path:
    path = log_path(house.store.root, name)
    log = CallLog(path, 1)
    log.write(b"x" * size)
    if size:
        log.close()
    else:
        os.close(log.descriptor)  # as its process is killed
    at = time.time() - age
    os.utime(path, (at, at))
    return path


def running(house: House, size: int, age: float) -> Path:
    """The log of a call in flight."""
    house.submit(axes={"x": [1]})
    house.step()
    (call,) = house.runner.calls.values()
    return put(house, call.log, size, age)


def test_without_logs_there_is_nothing_to_do(retention: LogRetention) -> None:
    assert retention.bound() == 0
    assert retention.older_than(0) == []


def test_the_oldest_logs_go_when_there_are_too_many(
    house: House, retention: LogRetention, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = running(house, 10, age=100)
    paths = [put(house, f"{age}", 10, age=age) for age in range(20, 0, -1)]
    monkeypatch.setattr(log_retention, "MOST_FILES", 21)
    assert retention.bound() == 0
    put(house, "new", 10)
    assert retention.bound() == 3
    assert [path.exists() for path in [kept, *paths[:4]]] == [True, False, False, False, True]


def test_the_oldest_logs_go_when_they_are_too_large(
    house: House, retention: LogRetention, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [put(house, f"{age}", 100_000, age=age) for age in range(10, 0, -1)]
    monkeypatch.setattr(log_retention, "MOST_BYTES", 600_000)
    assert retention.bound() == 5
    assert [path.exists() for path in paths] == [False] * 5 + [True] * 5
    assert retention.bound() == 0


def test_a_log_that_its_worker_does_not_bound_is_bounded(house: House, retention: LogRetention) -> None:
    path = running(house, 10, age=0)
    with path.open("ab") as child:
        child.write(b"y" * 5 * BOUND)
    assert retention.bound() == 0
    assert path.stat().st_blocks * 512 < HEAD + 1.2 * BOUND


def test_a_log_with_a_hole_is_written_again_when_nobody_writes_it(house: House, retention: LogRetention) -> None:
    size = 5 * BOUND
    old, new, mine = put(house, "old", size, age=100), put(house, "new", size), running(house, size, age=100)
    assert retention.bound() == 0
    assert [path.stat().st_size > size for path in (old, new, mine)] == [False, True, True]
    assert old.stat().st_size == HEAD + BOUND


def test_empty_logs_of_dead_workers_go_after_a_while(house: House, retention: LogRetention) -> None:
    old, new = put(house, "old", 0, age=DAY), put(house, "new", 0)
    mine = running(house, 0, age=DAY)
    assert retention.bound() == 1
    assert [path.exists() for path in (old, new, mine)] == [False, True, True]


def test_gc_removes_logs_by_age_but_not_those_of_running_calls(house: House) -> None:
    old, new, mine = put(house, "old", 10, age=DAY), put(house, "new", 10), running(house, 10, age=DAY)
    retention = Retention(house.ledger, house.store, house.plans.writing)
    assert retention.run(RetentionRequest()).leftovers == 0
    reported = retention.run(RetentionRequest(older_than_s=DAY / 2, dry_run=True))
    assert (reported.leftovers, reported.leftover_bytes) == (1, HEAD + 10)
    assert old.exists()
    retention.run(RetentionRequest(older_than_s=DAY / 2))
    assert [path.exists() for path in (old, new, mine)] == [False, True, True]
