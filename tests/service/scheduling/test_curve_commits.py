"""Curves are written while calls run and before they succeed; whatever dies in between, each epoch is there once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from deltalake.exceptions import DeltaError
from sweeping import Crash, House

from creditgrid.core.states import State
from creditgrid.service.scheduling import curve_commits as module
from creditgrid.workers.runner import Advanced, Failed, Finished, Point


def points(epochs: Iterable[int]) -> list[Point]:
    return [Point(epoch, {"loss": 1 / epoch}, 1e9, 1, "host", "cpu") for epoch in epochs]


def epochs(house: House) -> list[int]:
    dataset = house.curves.dataset()
    return [] if dataset is None else sorted(dataset.to_table()["epoch"].to_pylist())


def started(house: House) -> tuple[str, int]:
    """A sweep, and its first call, which makes the artifact of a stage and runs."""
    sweep = house.submit(fixed={"base": "ok"}, axes={"x": [1]})
    house.step()
    (call,) = house.runner.calls
    house.runner.start_call(call)
    house.step()
    return sweep, call


def save(house: House, call: int) -> dict[str, int]:
    """Store the artifact of the call, as its worker does."""
    (task,) = house.runner.calls[call].tasks
    import numpy as np

    return {task.key: house.store.save(task.key, task.payload(), {"one": np.ones(1)}, {})}


def test_points_are_written_while_the_call_runs(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    _, call = started(house)
    house.runner.report(Advanced(call, 1, 9, "", points([1])), Advanced(call, 2, 9, "", points([2])))
    house.step()
    assert epochs(house) == [1, 2]
    house.runner.report(Advanced(call, 3, 9, "", points([3])))
    house.step()
    assert epochs(house) == [1, 2]  # not yet: two seconds have not passed
    monkeypatch.setattr(module, "LIVE_EVERY_S", 0.0)
    house.step()
    assert epochs(house) == [1, 2, 3]
    dataset = house.curves.dataset()
    assert dataset is not None
    (row, *_) = dataset.to_table().to_pylist()
    (task,) = house.runner.calls[call].tasks
    assert (row["run"], row["stage"], row["kind"], row["base"]) == (task.group, task.key, "noop_base", "ok")


def test_a_call_succeeds_after_its_points(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    _sweep, call = started(house)
    sizes = save(house, call)
    house.runner.report(Finished(call, 1.0, "host", "cpu", sizes=sizes, points=points([1, 2])))
    del house.runner.calls[call]

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(house.curves, "add", full)
        house.step()
        assert house.call_states()[call] is State.RUNNING
        assert not house.scheduler.curves.awaited  # for some seconds nothing will be written
        assert "points cannot be written to the table of curves" in (house.scheduler.problem() or "")
    monkeypatch.setattr(house.scheduler.curves, "_last", 0.0)
    house.step()
    assert epochs(house) == [1, 2]
    assert house.scheduler.problem() is None
    assert house.call_states()[call] is State.SUCCEEDED


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_service_that_dies_around_the_append(house: House, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    sweep, call = started(house)
    house.runner.report(Advanced(call, 2, 9, "", points([1, 2])))
    original = house.curves.add

    def die(found: Any) -> None:
        if when == "after":
            original(found)
        raise Crash

    monkeypatch.setattr(house.curves, "add", die)
    with pytest.raises(Crash):
        house.step()
    again = house.restarted()
    again.scheduler.recover()
    again.step()
    (call,) = again.runner.calls
    sizes = save(again, call)
    again.runner.report(Advanced(call, 3, 9, "", points([1, 2, 3])), Finished(call, 1.0, "h", "cpu", sizes=sizes))
    del again.runner.calls[call]
    again.drain()
    assert epochs(again) == [1, 2, 3]
    assert again.state(sweep) is State.SUCCEEDED


def test_points_that_two_attempts_send_before_an_append_are_written_once(house: House) -> None:
    _, call = started(house)
    house.scheduler.curves._last = 1e18  # not due
    house.runner.report(Advanced(call, 2, 9, "", points([1, 2])))
    house.runner.lose()
    house.step(2)
    (call,) = house.runner.calls
    house.runner.start_call(call)
    house.runner.report(Advanced(call, 3, 9, "", points([1, 2, 3])))
    house.step()
    house.scheduler.curves._last = 0.0
    house.step()
    assert epochs(house) == [1, 2, 3]


def test_points_of_a_failed_call_are_written_before_its_artifacts_count(house: House) -> None:
    _sweep, call = started(house)
    stored = tuple(save(house, call))
    failed = Failed(call, "ValueError", "", transient=False, stored=stored, points=points([1, 2]))
    house.runner.report(failed)
    del house.runner.calls[call]
    house.step()
    assert epochs(house) == [1, 2]
    assert house.call_states()[call] is State.SUCCEEDED


def test_tasks_do_not_succeed_while_their_points_cannot_be_written(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    _sweep, call = started(house)
    stored = tuple(save(house, call))
    failed = Failed(call, "OSError", "", transient=True, stored=stored, points=points([1, 2]))
    house.runner.report(failed)
    del house.runner.calls[call]

    def broken(*_: Any) -> None:
        raise DeltaError("no")

    with monkeypatch.context() as trouble:
        trouble.setattr(house.curves, "add", broken)
        house.step()
    assert house.call_states()[call] is State.PENDING


def test_rows_come_after_the_points_of_their_call(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = house.submit(axes={"x": [1]})
    house.step()
    (call,) = house.runner.calls
    house.runner.report(Advanced(call, 1, 1, "", points([1])))
    house.runner.work(call)
    order: list[str] = []
    for part, name, said in ((house.curves, "add", "points"), (house.results, "append", "rows")):
        original = getattr(part, name)
        monkeypatch.setattr(part, name, lambda *a, o=original, s=said: (order.append(s), o(*a))[1])
    house.drain()
    assert order == ["points", "rows"]
    assert house.state(sweep) is State.SUCCEEDED


def test_rows_do_not_hurry_points_that_cannot_be_written(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.submit(axes={"x": [1]})
    house.step()
    (call,) = house.runner.calls
    house.runner.report(Advanced(call, 1, 1, "", points([1])))
    house.runner.work(call)
    tries: list[int] = []

    def broken(found: Any) -> None:
        tries.append(len(found))
        raise DeltaError("no")

    monkeypatch.setattr(house.curves, "add", broken)
    house.step(20)
    assert tries == [1]


def test_points_that_cannot_be_written_do_not_pile_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POINTS_KEPT", 3)

    def broken(*_: Any) -> None:
        raise DeltaError("no")

    monkeypatch.setattr(house.curves, "add", broken)
    _, call = started(house)
    house.runner.report(Advanced(call, 1, 9, "", points([1, 2, 3])))
    house.step()
    house.submit(axes={"x": [7]})
    house.step(3)
    assert len(house.runner.history) == 1
    assert house.scheduler.curves.full


def test_a_service_that_stops_writes_what_it_has(house: House) -> None:
    _, call = started(house)
    house.scheduler.curves._last = 1e18  # not due
    house.runner.report(Advanced(call, 1, 9, "", points([1])))
    house.step()
    assert epochs(house) == []
    house.scheduler._stopping.set()
    house.scheduler._run()
    assert epochs(house) == [1]


def test_a_ledger_that_cannot_be_used_drops_them(house: House) -> None:
    _, call = started(house)
    house.scheduler.curves._last = 1e18
    house.runner.report(Advanced(call, 1, 9, "", points([1])))
    house.step()
    house.scheduler.curves.forget()
    assert not house.scheduler.curves.waiting
    assert not house.scheduler.curves.owes([call])
