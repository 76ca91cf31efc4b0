"""Retention: unneeded artifacts are deleted by age and size, needed ones stay, and no result is lost."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from ledger_rows import states
from safetensors.numpy import load
from service_fakes import AppClient, Fakes
from sweeping import House

from creditgrid.core.errors import ArtifactError
from creditgrid.core.spec.text import SpecText
from creditgrid.core.states import State
from creditgrid.core.wire import RetentionRequest, RetentionView
from creditgrid.service.ledger import tables
from creditgrid.service.retention import RESUME_STATES_KEPT_S, Retention
from creditgrid.workers.artifacts import CORRUPT, RECORD, TEMPORARY, TENSORS
from creditgrid.workers.resume_state import FOLDER

KEYS = [f"{digit}" * 64 for digit in "0123456789"]
DAY = 86_400.0


@pytest.fixture
def retention(house: House) -> Retention:
    return Retention(house.ledger, house.store, house.plans.writing)


def put(house: House, key: str, *, age: float = 0.0, kind: str = "noop_base", numbers: int = 10) -> int:
    """An artifact that was last used so long ago; returns its bytes on the disk."""
    house.store.save(key, {"kind": kind}, {"x": np.zeros(numbers)}, {})
    set_age(house, key, age)
    return sum((house.store.path(key) / name).stat().st_size for name in (RECORD, TENSORS))


def set_age(house: House, key: str, age: float) -> None:
    make_old(house.store.path(key) / RECORD, age)


def make_old(path: Path, age: float) -> None:
    at = time.time() - age
    os.utime(path, (at, at))


def request(**fields: Any) -> RetentionRequest:
    return RetentionRequest(**fields)


def files(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_file()}


def both(house: House, retention: Retention, **fields: Any) -> RetentionView:
    """What a dry run reports; a run after it must report and do the same."""
    before = files(house.store.root)
    reported = retention.run(request(**fields, dry_run=True))
    assert files(house.store.root) == before
    done = retention.run(request(**fields))
    assert done == reported.model_copy(update={"dry_run": False})
    after = files(house.store.root)
    assert after <= before
    left = list(house.store.stored())
    assert (len(left), sum(artifact.bytes for artifact in left)) == (done.kept, done.kept_bytes)
    again = retention.run(request(**fields))
    assert (again.removed, again.leftovers, again.kept) == (0, 0, done.kept)
    return done


# -- by age and size -----------------------------------------------------------------------------------------------


def test_an_empty_store_has_nothing_to_delete(retention: Retention, house: House) -> None:
    for fields in ({}, {"older_than_s": 0}, {"max_bytes": 0}):
        assert both(house, retention, **fields) == RetentionView(
            dry_run=False, removed=0, removed_bytes=0, kept=0, kept_bytes=0, in_use=0, leftovers=0, leftover_bytes=0
        )


def test_long_unused_artifacts_are_deleted(retention: Retention, house: House) -> None:
    sizes = [put(house, key, age=day * DAY, numbers=10 * day) for day, key in enumerate(KEYS)]
    assert both(house, retention).removed == 0
    view = both(house, retention, older_than_s=6.5 * DAY)
    assert (view.removed, view.removed_bytes) == (3, sum(sizes[7:]))
    assert (view.kept, view.kept_bytes, view.in_use) == (7, sum(sizes[:7]), 0)
    assert list(house.store.keys()) == KEYS[:7]
    house.store.load(KEYS[6])  # now it was used
    assert both(house, retention, older_than_s=4.5 * DAY).removed == 1
    assert list(house.store.keys()) == [*KEYS[:5], KEYS[6]]


def test_the_longest_unused_are_deleted_until_the_rest_fits(retention: Retention, house: House) -> None:
    ages = dict(zip(KEYS, (3, 9, 1, 7, 5), strict=False))
    sizes = {key: put(house, key, age=age * DAY, numbers=100 * age) for key, age in ages.items()}
    everything = sum(sizes.values())
    by_age = sorted(ages, key=lambda key: -ages[key])
    assert both(house, retention, max_bytes=everything).removed == 0
    assert both(house, retention, max_bytes=everything - 1).removed == 1
    assert not house.store.has(by_age[0])
    view = both(house, retention, older_than_s=6 * DAY, max_bytes=sizes[by_age[3]] + sizes[by_age[4]])
    assert view.removed == 2  # one is too old, and then one is too many
    assert set(house.store.keys()) == set(by_age[3:])
    assert both(house, retention, max_bytes=0).removed == 2


def test_a_clock_that_was_set_back_makes_nothing_old(retention: Retention, house: House) -> None:
    put(house, KEYS[0], age=-30 * DAY)
    put(house, KEYS[1], age=2 * DAY)
    assert both(house, retention, older_than_s=DAY).removed == 1
    assert house.store.has(KEYS[0])


@pytest.mark.parametrize("kind", ["checkpoint", "of_a_plugin_that_is_gone"])
def test_what_cannot_be_computed_again_stays(retention: Retention, house: House, kind: str) -> None:
    put(house, KEYS[0], age=99 * DAY, kind=kind)
    put(house, KEYS[1], age=DAY)
    view = both(house, retention, older_than_s=0, max_bytes=0)
    assert (view.removed, view.kept, view.in_use) == (1, 1, 0)
    assert house.store.has(KEYS[0])


# -- what is needed ------------------------------------------------------------------------------------------------


def base(house: House) -> str:
    """The key of the one stage."""
    with house.ledger.read() as connection:
        return str(connection.scalar(sa.select(tables.tasks.c.key).where(tables.tasks.c.kind == "noop_base")))


def delete_all(house: House, retention: Retention) -> RetentionView:
    for key in list(house.store.keys()):
        set_age(house, key, 99 * DAY)
    return both(house, retention, older_than_s=0, max_bytes=0)


def test_what_an_open_sweep_needs_stays_until_it_ends(retention: Retention, house: House) -> None:
    sweep = house.submit(axes={"x": [1, 2], "group": [1, 2]}, fixed={"base": "ok"})
    house.step()
    (call,) = house.runner.calls
    house.runner.work(call)
    house.step()  # the base is computed, and cells wait for it or read it
    assert list(house.store.keys()) == [base(house)]
    view = delete_all(house, retention)
    assert (view.removed, view.kept, view.in_use) == (0, 1, 1)
    house.control.pause(sweep)
    assert delete_all(house, retention).in_use == 1
    house.control.resume(sweep)
    house.drain()
    assert house.state(sweep) is State.SUCCEEDED
    assert delete_all(house, retention).removed == 1
    house.check()


def test_what_existed_before_the_sweep_stays_too(retention: Retention, house: House) -> None:
    house.submit(axes={"x": [1]}, fixed={"base": "ok"})
    house.drain()
    sweep = house.submit(axes={"x": [2]}, fixed={"base": "ok"})  # its base is cached
    assert delete_all(house, retention).in_use == 1
    house.drain()
    assert house.state(sweep) is State.SUCCEEDED
    assert [len(call.tasks) for call in house.runner.history] == [1, 1, 1]


def test_inputs_of_a_call_that_still_runs_for_a_sweep_that_ended_do_no_harm(retention: Retention, house: House) -> None:
    sweep = house.submit(axes={"x": [1]}, fixed={"base": "ok"})
    house.drain()
    house.control.submit(SpecText.of({"name": "n", "experiment": "noop", "axes": {"x": [3]}, "fixed": {"base": "ok"}}))
    house.step()
    assert delete_all(house, retention).in_use == 1  # the call in flight reads it
    assert house.state(sweep) is State.SUCCEEDED


def test_a_sweep_that_needs_a_deleted_artifact_computes_it_again(retention: Retention, house: House) -> None:
    first = house.submit(axes={"x": [1]}, fixed={"base": "ok"})
    house.drain()
    content = (house.store.path(base(house)) / TENSORS).read_bytes()
    assert delete_all(house, retention).removed == 1
    same = house.submit(axes={"x": [1]}, fixed={"base": "ok"})
    assert house.state(same) is State.CACHED  # its rows stay
    plan = house.plan({"name": "n", "experiment": "noop", "axes": {"x": [1, 2]}, "fixed": {"base": "ok"}})
    assert (plan.cells.cached, plan.cells.new, plan.tasks["noop_base"].new) == (1, 1, 1)
    assert {miss.kind: miss.reason for miss in plan.misses}["noop_base"] == "computed before, but its artifact is gone"
    more = house.submit(axes={"x": [1, 2]}, fixed={"base": "ok"})
    house.drain()
    assert (house.state(first), house.state(more)) == (State.SUCCEEDED, State.SUCCEEDED)
    assert (house.store.path(base(house)) / TENSORS).read_bytes() == content
    house.check()


def test_no_plan_uses_what_is_being_deleted(retention: Retention, house: House) -> None:
    house.submit(axes={"x": [1]}, fixed={"base": "ok"})
    house.drain()
    set_age(house, base(house), 99 * DAY)
    done: list[RetentionView] = []
    house.plans.writing.acquire()  # somebody plans
    thread = threading.Thread(target=lambda: done.append(retention.run(request(older_than_s=0))))
    thread.start()
    time.sleep(0.1)
    assert done == []
    assert house.store.has(base(house))
    house.plans.writing.release()
    thread.join()
    assert done[0].removed == 1


def test_sweeps_and_runs_of_retention_at_the_same_time_lose_nothing(retention: Retention, house: House) -> None:
    stop = threading.Event()
    troubles: list[BaseException] = []

    def collect() -> None:
        try:
            while not stop.is_set():
                retention.run(request(older_than_s=0, max_bytes=0))
        except BaseException as error:
            troubles.append(error)

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        for x in range(15):
            sweep = house.submit(axes={"x": [x]}, fixed={"base": "ok"})
            house.drain()
            assert house.state(sweep) is State.SUCCEEDED
    finally:
        stop.set()
        thread.join()
    assert troubles == []
    assert not [call for call in house.runner.history if call.attempt > 1]
    house.check()


# -- leftovers -----------------------------------------------------------------------------------------------------


def test_files_of_dead_writers_are_deleted(retention: Retention, house: House) -> None:
    put(house, KEYS[0])
    shelf = house.store.path(KEYS[0]).parent
    old, young = shelf / f"{TEMPORARY}{KEYS[1]}-a", shelf / f"{TEMPORARY}{KEYS[1]}-b"
    for folder in (old, young):
        folder.mkdir()
        (folder / TENSORS).write_bytes(b"12345")
    make_old(old, 7200)
    make_old(young, -7200)
    view = both(house, retention)
    assert (view.removed, view.leftovers, view.leftover_bytes, view.kept) == (0, 1, 5, 1)
    assert (old.exists(), young.exists()) == (False, True)


def save_of(house: House, name: str, age: float = 0.0) -> Path:
    folder = house.store.root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"123")
    make_old(folder / name, age)
    return folder / name


def test_resume_states_are_deleted_when_no_call_will_use_them(retention: Retention, house: House) -> None:
    house.submit(axes={"x": [1]}, fixed={"base": "ok"})
    house.drain()
    cancelled = house.submit(axes={"x": [2]})
    house.control.cancel(cancelled)
    house.submit(axes={"x": [3]})
    with house.ledger.read() as connection:
        by_state = {state: key for key, state in states(connection, tables.tasks).items()}
    done = save_of(house, by_state[State.SUCCEEDED])
    needed = save_of(house, by_state[State.PENDING], age=99 * DAY)
    for_a_retry = save_of(house, by_state[State.CANCELLED], age=RESUME_STATES_KEPT_S / 2)
    unknown = save_of(house, KEYS[0], age=RESUME_STATES_KEPT_S + 60)
    torn = save_of(house, f".{KEYS[1]}-torn", age=7200)
    assert retention.tidy() == 3
    assert [path.exists() for path in (done, needed, for_a_retry, unknown, torn)] == [False, True, True, False, False]
    make_old(for_a_retry, RESUME_STATES_KEPT_S + 60)
    assert both(house, retention).leftovers == 1
    assert not for_a_retry.exists()
    assert needed.exists()


def test_artifacts_set_aside_as_corrupt_are_deleted_by_age_on_request(retention: Retention, house: House) -> None:
    for key in KEYS[:2]:
        put(house, key)
        (house.store.path(key) / TENSORS).write_bytes(b"")
        with pytest.raises(ArtifactError):
            house.store.load(key)
    first, second = house.store.corrupt()
    make_old(first, 9 * DAY)
    assert both(house, retention).leftovers == 0
    assert retention.tidy() == 0
    assert both(house, retention, older_than_s=7 * DAY).leftovers == 1
    assert house.store.corrupt() == [second]
    assert (house.store.root / CORRUPT).is_dir()


def test_a_store_that_cannot_be_changed_is_reported(
    retention: Retention, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(house, KEYS[0], age=DAY)

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ArtifactError, match=f"{KEYS[0]} cannot be removed: .*Read-only.*must be able to write there"):
        retention.run(request(older_than_s=0))
    assert house.store.has(KEYS[0])


def test_files_that_cannot_be_deleted_are_reported_and_deleted_the_next_time(
    retention: Retention, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(house, KEYS[0], age=DAY)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        with pytest.raises(ArtifactError, match=r"cannot be deleted: .*Permission denied"):
            retention.run(request(older_than_s=0))
    assert not house.store.has(KEYS[0])
    assert retention.run(request()).leftovers == 1
    assert files(house.store.root) == set()


# -- over HTTP -----------------------------------------------------------------------------------------------------


def test_gc_over_http(client: AppClient, fakes: Fakes) -> None:
    response = client.post("/v1/gc", json={"older_than_s": 60, "max_bytes": 5, "dry_run": True})
    assert response.status_code == 200
    assert RetentionView.model_validate_json(response.text).removed_bytes == 2000
    assert client.post("/v1/gc", json={}).json()["dry_run"] is False
    assert fakes.retention.requests == [request(older_than_s=60, max_bytes=5, dry_run=True), request()]
    for body in ({"older_than_s": -1}, {"max_bytes": 0.5}, {"older_than": 3}, [], None):
        assert client.post("/v1/gc", json=body).status_code == 422
    assert len(fakes.retention.requests) == 2


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_bytes_that_are_not_those_that_were_written_are_never_served(
    client: AppClient, fakes: Fakes, damage: str
) -> None:
    key = KEYS[0]
    fakes.store.save(key, {"kind": "train"}, {"x": np.arange(1000.0)}, {})
    path = fakes.store.path(key) / TENSORS
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + (b"\x01" if damage == "changed" else b""))
    response = client.get(f"/v1/artifacts/{key}")
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert "computed again" in response.json()["detail"]
    path.write_bytes(content)
    assert load(client.get(f"/v1/artifacts/{key}").content)["x"][-1] == 999.0


def test_a_download_continues_when_the_artifact_is_deleted(
    client: AppClient, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = KEYS[0]
    fakes.store.save(key, {"kind": "train"}, {"x": np.arange(100_000.0)}, {})
    original = fakes.store.open

    def open_and_lose(key: str) -> Any:
        file = original(key)
        shutil.rmtree(fakes.store.remove(key))
        return file

    monkeypatch.setattr(fakes.store, "open", open_and_lose)
    assert load(client.get(f"/v1/artifacts/{key}").content)["x"][-1] == 99_999.0
    assert client.get(f"/v1/artifacts/{key}").status_code == 404


def test_corrupt_artifacts_and_upkeep_are_counted(client: AppClient, fakes: Fakes) -> None:
    def counted(line: str) -> bool:
        return f"\n{line}\n" in client.get("/metrics").text

    assert counted("creditgrid_artifacts_corrupt 0.0")
    fakes.store.save(KEYS[0], {"kind": "train"}, {"x": np.zeros(1)}, {})
    (fakes.store.path(KEYS[0]) / TENSORS).write_bytes(b"")
    with pytest.raises(ArtifactError):
        fakes.store.load(KEYS[0])
    assert counted("creditgrid_artifacts_corrupt 1.0")
    assert counted('creditgrid_maintenance_total{duty="compact",outcome="done"} 7.0')
    assert counted('creditgrid_maintenance_total{duty="compact",outcome="failed"} 1.0')
    assert fakes.maintenance.running
