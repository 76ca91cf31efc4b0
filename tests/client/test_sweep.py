"""A sweep: its failures, its lists, its rows, and the requests that change it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from creditgrid.client.errors import (
    BadSetting,
    Conflict,
    InvalidRequest,
    NotFound,
    SweepFailed,
)
from creditgrid.core.errors import SpecError
from creditgrid.core.states import State

FAILURE = {
    "cause": "ValueError: no",
    "kind": "fit",
    "count": 2,
    "skipped": 5,
    "traceback": "Traceback …\nValueError: no\n",
    "attempt": 3,
    "host": "node-1",
    "key": "ab",
    "command": "creditgrid run-task ab",
}


def test_a_failed_sweep_is_an_error(service, client) -> None:
    service.failures = [FAILURE]
    sweep = client.sweep(service.add(State.FAILED))
    with pytest.raises(SweepFailed) as caught:
        sweep.wait()
    text = str(caught.value)
    assert "s1" in text
    assert "3 succeeded, 1 failed" in text
    assert "fit: ValueError: no (2 failed, 5 skipped)" in text
    assert caught.value.failures[0].traceback.startswith("Traceback")
    assert sweep.wait(raise_on_failure=False).state is State.FAILED


def test_a_cancelled_sweep_is_finished(service, client) -> None:
    assert client.sweep(service.add(State.CANCELLED)).wait().state is State.CANCELLED


def test_lists_are_fetched_page_by_page(service, client) -> None:
    sweep = client.sweep(service.add())
    cells = sweep.cells()
    assert next(cells).index == 0
    pages = [path for _, path, _, _ in service.log if path.endswith("/cells")]
    assert len(pages) == 1
    assert [cell.index for cell in cells] == [1, 2, 3, 4]
    assert [cell.index for cell in sweep.cells(State.FAILED)] == []
    for _ in range(4):
        service.add()
    assert [found.id for found in client.sweeps()] == ["s1", "s2", "s3", "s4", "s5"]
    assert [found.id for found in client.sweeps(limit=3)] == ["s1", "s2", "s3"]


def test_control(service, client) -> None:
    sweep = client.sweep(service.add())
    assert sweep.pause() is sweep
    assert (sweep.view.paused, sweep.unchanged) == (True, None)
    assert sweep.pause().unchanged == "nothing was changed: it is paused already"
    assert not sweep.resume().view.paused
    assert sweep.unchanged is None
    assert sweep.resume().unchanged == "nothing was changed: it is running already"
    with pytest.raises(Conflict, match="is running"):
        sweep.retry()
    assert sweep.cancel().state is State.CANCELLED
    assert sweep.unchanged is None
    assert sweep.cancel().unchanged == "nothing was changed: it is cancelled already"
    for ask in (sweep.pause, sweep.resume):
        with pytest.raises(Conflict, match="is finished"):
            ask()
    assert sweep.retry().state is State.PENDING
    assert [len(service.posts(f"/v1/sweeps/s1/{verb}")) for verb in ("pause", "resume", "retry", "cancel")] == [
        3,
        3,
        2,
        2,
    ]
    assert {body for _, body in service.posts("/v1/sweeps/s1/pause")} == {b""}


def test_extend(service, client) -> None:
    sweep = client.sweep(service.add(State.SUCCEEDED))
    axes = {"eta": np.array([0.1, 0.3]).tolist(), "seed": (np.int64(1),)}
    assert sweep.extend(axes, [{"method": "vec", "eta": np.float64(1e-3)}]) is sweep
    assert (sweep.view.cells, sweep.state, sweep.unchanged) == (8, State.RUNNING, None)
    ((_, body),) = service.posts("/v1/sweeps/s1/extend")
    sent = {"axes": {"eta": [0.1, 0.3], "seed": [1]}, "include": [{"method": "vec", "eta": 1e-3}]}
    assert json.loads(body) == sent
    assert sweep.extend(axes={"eta": [0]}).unchanged == "nothing was changed: the sweep has all these cells"


def test_an_extension_that_cannot_be_sent(service, client, spec_problem) -> None:
    sweep = client.sweep(service.add())
    with pytest.raises(BadSetting, match="there is nothing to add"):
        sweep.extend()
    with pytest.raises(SpecError, match="/axes/eta/1: nan is not a finite number"):
        sweep.extend({"eta": [1, float("nan")]})
    assert service.posts("/v1/sweeps/s1/extend") == []
    service.faults.append(spec_problem)
    with pytest.raises(InvalidRequest, match="/axes/eta/3: eta: must be finite"):
        sweep.extend({"eta": [1]})


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume", "retry", "extend"])
def test_a_request_whose_answer_was_lost_is_done(service, client, pauses, verb: str) -> None:
    state = State.FAILED if verb == "retry" else State.RUNNING
    sweep = client.sweep(service.add(state, paused=verb == "resume"))
    service.faults.append("drop after")
    ask = getattr(sweep, verb)
    assert (ask({"eta": [1]}) if verb == "extend" else ask()) is sweep
    assert len(service.posts(f"/v1/sweeps/s1/{verb}")) == 2
    expected = {"cancel": State.CANCELLED, "retry": State.PENDING}.get(verb, State.RUNNING)
    assert (sweep.state, sweep.view.paused) == (expected, verb == "pause")
    # Of two equal requests the second may find nothing to do, because the first has done it.
    assert sweep.unchanged is None


def test_exports_by_ending_or_name(service, client, tmp_path: Path) -> None:
    sweep = client.sweep(service.add())
    assert sweep.export(tmp_path / "a.CSV").read_bytes() == b"rows as text/csv"
    assert sweep.export(tmp_path / "b", format="json").read_bytes() == b"rows as application/json"
    with pytest.raises(BadSetting, match=r"'xlsx' of .*arrow, parquet, csv, json"):
        sweep.export(tmp_path / "a.xlsx")
    with pytest.raises(BadSetting):
        sweep.export(tmp_path / "c")
    assert sweep.export_curves(tmp_path / "c.csv").read_bytes() == b"rows as text/csv"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.CSV", "b", "c.csv"]
    assert len(sweep.curves()) == len(sweep.results())
    assert [path for _, path, _, _ in service.log[-2:]] == ["/v1/sweeps/s1/curves", "/v1/sweeps/s1/results"]


def test_the_rest_reads_as_models(service, client) -> None:
    sweep = client.sweep(service.add())
    assert repr(sweep) == "Sweep('s1', 'a [red]grid[/red]', running)"
    assert sweep.summary().rows[0]["best_eta"] == 0.01
    service.failures = [FAILURE]
    assert sweep.failures()[0].skipped == 5
    with pytest.raises(NotFound, match="there is no sweep nope"):
        client.sweep("nope")
