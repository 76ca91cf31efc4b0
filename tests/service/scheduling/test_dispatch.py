"""Dispatch: which ready calls go to the runner next."""

from __future__ import annotations

from collections import Counter

import pytest
from sweeping import House, ScriptedRunner, both_databases, one_cell_groups

from creditgrid.core.spec.text import SpecText
from creditgrid.core.wire import Role
from creditgrid.service.people.actor import Actor
from creditgrid.service.scheduling import dispatch


def test_urgent_sweeps_overtake_and_old_ones_come_first(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedRunner, "cpus", 2.0)
    monkeypatch.setattr(dispatch, "MOST_AHEAD", 2)
    old = house.submit(axes={"x": [1]}, fixed={"group": 1})
    new = house.submit(axes={"x": [2]}, fixed={"group": 2})
    urgent = house.submit(axes={"x": [3]}, fixed={"group": 3}, priority=7)
    house.step()
    assert [call.stamp["sweep"] for call in house.runner.history] == [urgent, old]
    house.step(3)
    assert len(house.runner.calls) == 2
    house.runner.work(next(iter(house.runner.calls)))
    house.step(2)
    assert [call.stamp["sweep"] for call in house.runner.history] == [urgent, old, new]
    house.drain()


def test_calls_that_an_urgent_sweep_shares_become_urgent(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedRunner, "cpus", 1.0)
    house.submit(axes={"x": [1]}, fixed={"group": 1})
    house.submit(axes={"x": [2]}, fixed={"group": 2})
    house.submit(axes={"x": [2]}, fixed={"group": 2}, priority=5)
    house.step()
    assert [call.tasks[0].params["x"] for call in house.runner.history] == [2]
    house.drain()


@both_databases
def test_an_urgent_sweep_takes_the_next_free_slot(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedRunner, "cpus", 2.0)
    monkeypatch.setattr(dispatch, "MOST_AHEAD", 4)
    house.submit(**one_cell_groups(10))
    house.step()
    one, two = list(house.runner.calls)
    house.runner.start_call(one)
    house.runner.start_call(two)
    house.step(2)
    assert len(house.runner.calls) == 4  # two run, two wait in the runner's own queue
    house.submit(**one_cell_groups(3, 100), priority=5)
    house.step(2)
    assert set(house.runner.calls) >= {one, two}  # running calls are not taken back
    waiting = [call for number, call in house.runner.calls.items() if number not in (one, two)]
    assert [call.tasks[0].params["group"] for call in waiting] == [100, 101]
    house.drain()
    assert max(call.attempt for call in house.runner.history) == 1


@both_databases
def test_sweeps_of_one_priority_take_turns(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedRunner, "cpus", 1.0)
    monkeypatch.setattr(dispatch, "MOST_AHEAD", 1)
    house.submit(**one_cell_groups(6))
    house.submit(**one_cell_groups(3, 100))
    house.submit(**one_cell_groups(3, 200))
    for _ in range(12):
        house.step()
        (number,) = house.runner.calls
        house.runner.start_call(number)
        house.step()
        others = [call for call in house.runner.calls if call != number]
        assert len(others) <= 1
        house.runner.work(number)
        house.step()
        for call in others:
            house.runner.work(call)
        if not house.open_calls():
            break
    order = [call.tasks[0].params["group"] for call in house.runner.history]
    # Of the first nine calls, each three in a row are one of each sweep.
    assert [sorted(x // 100 for x in order[i : i + 3]) for i in (0, 3, 6)] == [[0, 1, 2]] * 3


@both_databases
def test_calls_that_need_a_gpu_do_not_block_the_others(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedRunner, "cpus", 2.0)
    monkeypatch.setattr(ScriptedRunner, "gpus", 1.0)
    house.submit(**one_cell_groups(10), resources={"measure": {"gpu": 1}})
    house.step()
    busy = list(house.runner.calls)
    house.runner.start_call(busy[0])
    house.step(2)
    house.submit(**one_cell_groups(10, 100))
    house.step(2)
    assert sum(call.tasks[0].params["group"] >= 100 for call in house.runner.calls.values()) == 2
    house.drain()


@both_databases
def test_an_urgent_sweep_takes_back_no_call_that_waits_for_other_slots(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScriptedRunner, "cpus", 2.0)
    monkeypatch.setattr(ScriptedRunner, "gpus", 1.0)
    house.submit(**one_cell_groups(4))
    house.step()
    assert len(house.runner.calls) == 2
    house.submit(**one_cell_groups(5, 100), resources={"measure": {"gpu": 1}}, priority=5)
    house.step(3)
    assert house.runner.cancelled == []
    house.drain()


def submit_as(house: House, person: str, calls: int, first: int) -> str:
    document = {"name": "n", "experiment": "noop", **one_cell_groups(calls, first)}
    return house.control.submit(SpecText.of(document), actor=Actor(person, Role.SUBMIT))[0]


@both_databases
def test_people_take_turns_before_their_sweeps(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anna has three sweeps and ben one: each of them gets half of the calls."""
    monkeypatch.setattr(ScriptedRunner, "cpus", 4.0)
    monkeypatch.setattr(dispatch, "MOST_AHEAD", 4)
    for first in (100, 200, 300):
        submit_as(house, "anna", 8, first)
    submit_as(house, "ben", 8, 400)
    for _ in range(4):
        house.step()
        for number in list(house.runner.calls):
            house.runner.start_call(number)
            house.runner.work(number)
        house.step()
    groups = [call.tasks[0].params["group"] // 100 for call in house.runner.history[:16]]
    assert Counter(group == 4 for group in groups) == {True: 8, False: 8}
    assert max(Counter(groups[:16]).values()) == 8
    assert set(Counter(groups).values()) == {8, 3, 2}  # and anna's sweeps take turns
    house.drain()


@both_databases
def test_who_has_calls_in_flight_waits_for_the_others(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that run count, although their sweep has no further call: ben's second sweep waits behind anna's."""
    monkeypatch.setattr(ScriptedRunner, "cpus", 2.0)
    monkeypatch.setattr(dispatch, "MOST_AHEAD", 2)
    submit_as(house, "ben", 2, 100)
    house.step()
    for number in list(house.runner.calls):
        house.runner.start_call(number)
    house.step()
    submit_as(house, "ben", 4, 200)
    submit_as(house, "anna", 4, 300)
    house.step(2)
    assert [call.tasks[0].params["group"] for call in house.runner.history[2:]] == [300, 301]
    house.drain()
