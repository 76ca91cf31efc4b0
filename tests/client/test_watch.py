"""Waiting for a sweep."""

from __future__ import annotations

import threading
import time
from itertools import islice

import pytest

from creditgrid.client import watch
from creditgrid.client.errors import (
    ApiError,
    CannotConnect,
    NotFound,
    WaitTimeout,
)
from creditgrid.core.states import State
from creditgrid.core.wire import Problem


def test_wait_returns_when_the_sweep_is_finished(service, client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LONGEST_S", 0.3)
    sweep = client.sweep(service.add())
    asked = []

    def finished_at_the_third(id_: str) -> None:
        asked.append(time.monotonic())
        if len(asked) == 3:
            service.change(id_, State.SUCCEEDED)

    service.on_view = finished_at_the_third
    assert sweep.wait() is sweep
    assert sweep.state is State.SUCCEEDED
    assert len(asked) == 3


def test_an_event_makes_it_look_at_once(service, client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LONGEST_S", 30.0)
    sweep = client.sweep(service.add())

    def finish() -> None:
        time.sleep(0.2)
        service.change(sweep.id, State.CACHED)
        service.emit(sweep.id, "sweep.finished")

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
        service.emit(sweep.id, "call.finished")
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
    service.emit("s1", "call.started")  # or a keep-alive
    deadline = time.monotonic() + 5
    while reading() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert reading() == []


def test_waiting_has_an_end(service, client) -> None:
    sweep = client.sweep(service.add())
    started = time.monotonic()
    with pytest.raises(WaitTimeout, match="3 of 4 cells are finished; the sweep continues") as caught:
        sweep.wait(timeout=0.4)
    assert isinstance(caught.value, TimeoutError)
    assert 0.4 <= time.monotonic() - started < 10
