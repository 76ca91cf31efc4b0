"""A lost artifact is computed again."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from sweeping import House, both_databases

from creditgrid.core.states import State
from creditgrid.workers.artifacts import TENSORS
from creditgrid.workers.local_runner import LocalRunner

SUCCEEDED = State.SUCCEEDED


def test_a_corrupt_artifact_is_recomputed_while_its_cells_wait(tmp_path: Path) -> None:
    earlier = House(tmp_path)
    first = earlier.submit(axes={"x": [1]}, fixed={"base": "ok"})
    earlier.drain()
    (stage,) = earlier.tasks.page(first, None, "", 5)[0]
    (earlier.store.path(stage.key) / TENSORS).write_bytes(b"bad disk")
    earlier.close()
    house = House(tmp_path, LocalRunner)
    house.runner.start()
    sweep = house.submit(axes={"x": [2]}, fixed={"base": "ok"})
    deadline = time.monotonic() + 60
    while not house.state(sweep).finished:
        assert time.monotonic() < deadline
        house.step()
        house.check()
    assert house.counts(sweep) == {SUCCEEDED: 1}
    (lost,) = (event.data for event in house.events(sweep) if event.type == "artifact.lost")
    assert "SHA-256 differs" in lost["message"]
    assert lost["missing"] == [stage.key]
    (again,) = house.tasks.page(sweep, None, "", 5)[0]
    assert (again.key, again.state) == (stage.key, SUCCEEDED)
    assert house.store.has(stage.key)
    house.runner.stop()
    house.close()


@both_databases
@pytest.mark.parametrize("then", ["cancel", "pause"])
def test_a_recomputed_artifact_serves_every_sweep_that_needs_it(house: House, then: str) -> None:
    house.submit(axes={"x": [0]}, fixed={"base": "ok"})
    house.drain()
    document = {"axes": {"x": [1]}, "fixed": {"base": "ok"}}
    one = house.submit(**document)
    house.step()
    two = house.submit(**document)
    (key,) = house.store.keys()
    shutil.rmtree(house.store.path(key))
    house.runner.work(next(iter(house.runner.calls)))  # its input is missing
    house.step()
    getattr(house.control, then)(one)
    house.check()
    house.drain_sweep(two)
    assert house.counts(two) == {SUCCEEDED: 1}


@both_databases
def test_a_lost_input_is_recomputed_whatever_the_retries(house: House) -> None:
    house.submit(axes={"x": [0]}, fixed={"base": "ok"})
    house.drain()
    sweep = house.submit(axes={"x": [1]}, fixed={"base": "ok"}, retry={"max": 0, "backoff_s": 0})
    house.step()
    (key,) = house.store.keys()
    shutil.rmtree(house.store.path(key))
    house.drain()
    assert house.counts(sweep) == {SUCCEEDED: 1}
