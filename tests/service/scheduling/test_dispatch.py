"""Dispatch: which ready calls go to the runner next."""

from __future__ import annotations

import pytest
from sweeping import House, ScriptedRunner

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
