"""Sweeps through the Python client."""

from __future__ import annotations

import json
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from creditgrid.client import watch
from creditgrid.client.errors import (
    ApiError,
    BadSetting,
    CannotConnect,
    Conflict,
    DamagedAnswer,
    InvalidRequest,
    NotFound,
    SweepFailed,
    WaitTimeout,
)
from creditgrid.core.errors import SpecError
from creditgrid.core.states import State
from creditgrid.core.wire import Problem, TaskDocument

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


def test_wait_returns_when_the_sweep_is_through(service, client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LONGEST_S", 0.3)
    sweep = client.sweep(service.add())
    asked = []

    def through_at_the_third(id_: str) -> None:
        asked.append(time.monotonic())
        if len(asked) == 3:
            service.change(id_, State.SUCCEEDED)

    service.on_view = through_at_the_third
    assert sweep.wait() is sweep
    assert sweep.state is State.SUCCEEDED
    assert len(asked) == 3


def test_an_event_makes_it_look_at_once(service, client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LONGEST_S", 30.0)
    sweep = client.sweep(service.add())

    def finish() -> None:
        time.sleep(0.5)
        service.change(sweep.id, State.CACHED)
        service.tell(sweep.id, "sweep.finished")

    thread = threading.Thread(target=finish)
    thread.start()
    started = time.monotonic()
    sweep.wait()
    thread.join()
    assert time.monotonic() - started < 5
    assert sweep.state is State.CACHED


def test_many_events_make_few_requests(service, client) -> None:
    sweep = client.sweep(service.add())
    for _ in range(300):
        service.tell(sweep.id, "call.finished")
    seen = []
    started = time.monotonic()
    for update in sweep.updates():
        seen += update.events
        if len(seen) == 300 or time.monotonic() - started > 5:
            break
    assert [event.id for event in seen] == list(range(10, 3010, 10))
    asked = [path for _, path, _, _ in service.log if path == f"/v1/sweeps/{sweep.id}"]
    assert len(asked) <= 3 + (time.monotonic() - started) / watch.SHORTEST_S


def test_a_service_that_is_away_is_waited_for(service, client, pauses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SHORTEST_S", 0.01)
    sweep = client.sweep(service.add())
    unavailable = Problem(title="Unavailable", status=503, detail="starting")
    service.faults.extend(["drop before"] * 60 + [unavailable] * 60)
    service.on_view = lambda id_: service.change(id_, State.SUCCEEDED)
    *away, last = sweep.updates()
    assert {type(update.error) for update in away} == {CannotConnect, ApiError}
    assert {update.view.state for update in away} == {State.RUNNING}
    assert (last.view.state, last.error) == (State.SUCCEEDED, None)
    assert not service.faults


def test_a_service_that_stays_away_is_not_waited_for_without_end(service, client, pauses, monkeypatch) -> None:
    monkeypatch.setattr(watch, "AWAY_S", 0.2)
    sweep = client.sweep(service.add())
    service.faults.extend(["drop before"] * 100_000)
    with pytest.raises(CannotConnect, match="lost the connection"):
        sweep.wait()
    service.faults.clear()
    monkeypatch.setattr(watch, "AWAY_S", 100)
    sweep = client.sweep(sweep.id)
    service.faults.extend(["drop before"] * 100_000)
    with pytest.raises(WaitTimeout, match="3 of 4 cells"):
        sweep.wait(timeout=0.3)
    service.faults.clear()


def test_a_refusal_is_not_waited_out(service, client) -> None:
    sweep = client.sweep(service.add())
    del service.sweeps[sweep.id]
    with pytest.raises(NotFound):
        sweep.wait()


def test_without_events_it_polls(service, client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LONGEST_S", 0.3)
    sweep = client.sweep(service.add())
    service.events.clear()  # the stream breaks at once, again and again
    views = [update.view.state for update in islice(sweep.updates(), 3)]
    assert views == [State.RUNNING] * 3


def test_no_thread_is_left_waiting(service, client, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())
    sweep = client.sweep(service.add())

    def reading() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread not in before and thread.name == "events of s1"]

    with pytest.raises(WaitTimeout):
        sweep.wait(timeout=0.3)
    assert len(reading()) == 1
    service.tell("s1", "call.started")  # or a keep-alive
    deadline = time.monotonic() + 5
    while reading() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert reading() == []


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


def test_a_cancelled_sweep_is_through(service, client) -> None:
    assert client.sweep(service.add(State.CANCELLED)).wait().state is State.CANCELLED


def test_waiting_has_an_end(service, client) -> None:
    sweep = client.sweep(service.add())
    started = time.monotonic()
    with pytest.raises(WaitTimeout, match="3 of 4 cells are finished; the sweep continues") as caught:
        sweep.wait(timeout=0.4)
    assert isinstance(caught.value, TimeoutError)
    assert 0.4 <= time.monotonic() - started < 10


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
        with pytest.raises(Conflict, match="is through"):
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
def test_what_was_asked_and_whose_answer_was_lost_is_done(service, client, pauses, verb: str) -> None:
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


def test_artifacts(service, client, tmp_path: Path) -> None:
    tensors = client.artifact("ab")
    assert list(tensors) == ["B.0"]
    np.testing.assert_array_equal(tensors["B.0"], np.arange(6, dtype=np.float32).reshape(2, 3))
    assert client.artifact_record("ab") == {"key": "ab", "kind": "train"}
    path = client.download_artifact("ab", tmp_path / "ab.safetensors")
    assert list(load_file(path)) == ["B.0"]


def test_a_damaged_artifact_is_not_taken(service, client, tmp_path: Path) -> None:
    service.damaged.add("ab")
    with pytest.raises(DamagedAnswer, match="/v1/artifacts/ab is damaged"):
        client.artifact("ab")
    with pytest.raises(DamagedAnswer, match="/v1/artifacts/ab is damaged"):
        client.download_artifact("ab", tmp_path / "ab.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_tasks_by_key(service, client) -> None:
    document = TaskDocument(key="k", kind="fit", version=1, params={"a": 1}, parents={"x": "p"}, group="g", source={})
    service.tasks["k"] = document
    assert client.task("k") == document
    with pytest.raises(NotFound):
        client.task("../sweeps")
    with pytest.raises(BadSetting):
        client.task("")


def test_exports_by_ending_or_name(service, client, tmp_path: Path) -> None:
    sweep = client.sweep(service.add())
    assert sweep.export(tmp_path / "a.CSV").read_bytes() == b"rows as text/csv"
    assert sweep.export(tmp_path / "b", format="json").read_bytes() == b"rows as application/json"
    with pytest.raises(BadSetting, match=r"'xlsx' of .*arrow, parquet, csv, json"):
        sweep.export(tmp_path / "a.xlsx")
    with pytest.raises(BadSetting):
        sweep.export(tmp_path / "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.CSV", "b"]


def test_the_rest_reads_as_models(service, client) -> None:
    sweep = client.sweep(service.add())
    assert repr(sweep) == "Sweep('s1', 'a [red]grid[/red]', running)"
    assert sweep.summary().rows[0]["best_eta"] == 0.01
    service.failures = [FAILURE]
    assert sweep.failures()[0].skipped == 5
    with pytest.raises(NotFound, match="there is no sweep nope"):
        client.sweep("nope")
