"""Sweeps through the Python client."""

from __future__ import annotations

import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from creditgrid.client import watch
from creditgrid.client.errors import BadSetting, Conflict, NotFound, SweepFailed, WaitTimeout
from creditgrid.client.watch import updates
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
    for _view, events in updates(sweep):
        seen += events
        if len(seen) == 300 or time.monotonic() - started > 5:
            break
    assert [event.id for event in seen] == list(range(10, 3010, 10))
    asked = [path for _, path, _, _ in service.log if path == f"/v1/sweeps/{sweep.id}"]
    assert len(asked) <= 3 + (time.monotonic() - started) / watch.SHORTEST_S


def test_without_events_it_polls(service, client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LONGEST_S", 0.3)
    sweep = client.sweep(service.add())
    service.events.clear()  # the stream breaks at once, again and again
    views = [view.state for view, _ in islice(updates(sweep), 3)]
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
    with pytest.raises(WaitTimeout, match="3 of 4 cells are through; it goes on") as caught:
        sweep.wait(timeout=0.4)
    assert isinstance(caught.value, TimeoutError)
    assert 0.4 <= time.monotonic() - started < 2


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


def test_cancel_and_retry(service, client) -> None:
    sweep = client.sweep(service.add())
    assert sweep.cancel().state is State.CANCELLED
    with pytest.raises(Conflict, match="is through"):
        sweep.cancel()
    assert sweep.retry().state is State.PENDING


def test_a_cancel_whose_answer_was_lost_is_done(service, client, pauses) -> None:
    sweep = client.sweep(service.add())
    service.faults.append("drop after")
    assert sweep.cancel().state is State.CANCELLED
    assert len(service.posts("/v1/sweeps/s1/cancel")) == 2


def test_artifacts(service, client, tmp_path: Path) -> None:
    tensors = client.artifact("ab")
    assert list(tensors) == ["B.0"]
    np.testing.assert_array_equal(tensors["B.0"], np.arange(6, dtype=np.float32).reshape(2, 3))
    assert client.artifact_record("ab") == {"key": "ab", "kind": "train"}
    path = client.download_artifact("ab", tmp_path / "ab.safetensors")
    assert list(load_file(path)) == ["B.0"]


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
