"""A lost artifact is computed again."""

from __future__ import annotations

import time
from pathlib import Path

from sweeping import House

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
