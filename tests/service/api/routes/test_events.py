"""Server-sent events of a sweep."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI
from service_fakes import AppClient, Fakes, listening
from sqlalchemy.exc import OperationalError

from creditgrid.core.states import State
from creditgrid.core.wire import TERMINAL_EVENT, EventView
from creditgrid.service.api.listeners import POLL_S
from creditgrid.service.api.routes.events import BATCH

SPEC = {"name": "one", "experiment": "linesearch", "axes": {"eta": [0.1]}}


def received(response: httpx.Response) -> list[dict[str, str]]:
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    messages = []
    for block in response.text.split("\n\n"):
        lines = [line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            messages.append(dict(line for line in lines if len(line) == 2))
    return messages


def test_events_of_an_ended_sweep(client: AppClient, fakes: Fakes, sweep: str) -> None:
    fakes.ledger.emit("another", "not.ours")
    fakes.ledger.emit(sweep, "call.finished", note="two\nlines")
    fakes.ledger.finish(sweep)
    messages = received(client.get(f"/v1/sweeps/{sweep}/events"))
    assert [(m["id"], m["event"]) for m in messages] == [
        ("1", "sweep.created"),
        ("3", "call.finished"),
        ("4", TERMINAL_EVENT),
    ]
    events = [EventView.model_validate_json(message["data"]) for message in messages]
    assert events == [event for event in fakes.ledger.events if event.sweep == sweep]


@pytest.mark.parametrize(("after", "ids"), [(0, [1, 2, 3]), (1, [2, 3]), (2, [3]), (3, [])])
def test_events_continue_after_an_id(client: AppClient, fakes: Fakes, sweep: str, after: int, ids: list[int]) -> None:
    fakes.ledger.emit(sweep, "note")
    fakes.ledger.finish(sweep)
    path = f"/v1/sweeps/{sweep}/events"
    by_header = received(client.get(path, headers={"Last-Event-ID": str(after)}))
    by_query = received(client.get(path, params={"after": after}))
    assert [int(m["id"]) for m in by_header] == [int(m["id"]) for m in by_query] == ids


def test_the_stream_of_a_retried_sweep_continues(client: AppClient, fakes: Fakes, sweep: str) -> None:
    fakes.ledger.finish(sweep, State.FAILED)
    fakes.control.retry(sweep)
    fakes.ledger.finish(sweep)
    messages = received(client.get(f"/v1/sweeps/{sweep}/events"))
    assert [m["event"] for m in messages] == ["sweep.created", TERMINAL_EVENT, "sweep.retried", TERMINAL_EVENT]


def test_more_events_than_one_query_reads(client: AppClient, fakes: Fakes, sweep: str) -> None:
    for _ in range(1200):
        fakes.ledger.emit(sweep, "note")
    fakes.ledger.finish(sweep)
    ids = [int(m["id"]) for m in received(client.get(f"/v1/sweeps/{sweep}/events"))]
    assert ids == list(range(1, 1203))


@pytest.mark.parametrize("given_id", ["x", "-1", "1.5", "99", "9" * 30, "9" * 5000, "٣"])
def test_bad_event_ids(client: AppClient, fakes: Fakes, sweep: str, given_id: str) -> None:
    fakes.ledger.finish(sweep)
    response = client.get(f"/v1/sweeps/{sweep}/events", headers={"Last-Event-ID": given_id.encode()})
    assert response.status_code == 400
    assert "event" in response.json()["detail"].lower()


def test_an_empty_event_id_is_none(client: AppClient, fakes: Fakes, sweep: str) -> None:
    fakes.ledger.finish(sweep)
    assert len(received(client.get(f"/v1/sweeps/{sweep}/events", headers={"Last-Event-ID": ""}))) == 2
    assert client.get(f"/v1/sweeps/{sweep}/events?after=-1").status_code == 422
    assert client.get(f"/v1/sweeps/{sweep}/events?after=99").status_code == 400


def messages(response: httpx.Response) -> Iterator[tuple[int, str, float]]:
    """(id, type, time of arrival) of each event."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "id" in fields:
            assert json.loads(fields["data"])["id"] == int(fields["id"])
            yield int(fields["id"]), fields["event"], time.monotonic()
            fields = {}


def test_events_of_a_running_sweep_are_sent_as_they_happen(http: httpx.Client, fakes: Fakes) -> None:
    sweep = http.post("/v1/sweeps", json=SPEC).json()["id"]
    emitted: list[float] = []

    def happen() -> None:
        for kind in ("call.started", "call.finished"):
            time.sleep(0.5)
            emitted.append(time.monotonic())
            fakes.ledger.emit(sweep, kind)
        time.sleep(0.5)
        fakes.ledger.finish(sweep)

    thread = threading.Thread(target=happen)
    with http.stream("GET", f"/v1/sweeps/{sweep}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        thread.start()
        found = list(messages(response))  # until the stream ends
    thread.join()
    assert [kind for _, kind, _ in found] == ["sweep.created", "call.started", "call.finished", TERMINAL_EVENT]
    for at, (_, _, arrived) in zip(emitted, found[1:3], strict=True):
        assert arrived - at < 0.5 + 1  # the service looks every 0.25 s; the machine may be busy
    with http.stream("GET", f"/v1/sweeps/{sweep}/events", headers={"Last-Event-ID": str(found[1][0])}) as response:
        assert [number for number, _, _ in messages(response)] == [number for number, _, _ in found[2:]]


def test_a_stream_stops_when_its_client_disconnects(
    http: httpx.Client, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = http.post("/v1/sweeps", json=SPEC).json()["id"]
    reads = 0
    inner = fakes.sweeps.events

    def counted(*arguments: object) -> object:
        nonlocal reads
        reads += 1
        return inner(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fakes.sweeps, "events", counted)
    with http.stream("GET", f"/v1/sweeps/{sweep}/events") as response:
        stream = messages(response)
        assert next(stream)[1] == "sweep.created"
        fakes.ledger.emit(sweep, "note")
        assert next(stream)[1] == "note"
    time.sleep(0.5)  # until the service notices
    before = reads
    fakes.ledger.emit(sweep, "note")
    time.sleep(3 * POLL_S)
    assert reads == before


def test_listeners_share_reads_and_read_nothing_while_nothing_happens(
    http: httpx.Client, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = http.post("/v1/sweeps", json=SPEC).json()["id"]
    for _ in range(2 * BATCH):
        fakes.ledger.emit(sweep, "note")
    reads: list[int] = []
    inner = fakes.sweeps.events

    def counted(of: str, after: int, limit: int) -> list[EventView]:
        if limit == BATCH:  # not the look of a request at whether its first event exists
            reads.append(after)
        return inner(of, after, limit)

    monkeypatch.setattr(fakes.sweeps, "events", counted)
    found: list[list[str]] = []

    def listen() -> None:
        with http.stream("GET", f"/v1/sweeps/{sweep}/events") as response:
            found.append([kind for _, kind, _ in messages(response)])

    threads = [threading.Thread(target=listen) for _ in range(10)]
    for thread in threads:
        thread.start()
    while len(reads) < 3:  # two pages, and what is left
        time.sleep(0.05)
    time.sleep(3 * POLL_S)
    before = len(reads)
    assert before == len(set(reads)) == 3, "each page is read once"
    fakes.ledger.emit("another", "sweep.created")
    time.sleep(3 * POLL_S)
    assert len(reads) == before, "an event of another sweep is no reason to read"
    fakes.ledger.finish(sweep)
    for thread in threads:
        thread.join()
    assert len(reads) <= before + 2, "the new event, and nothing after it"
    assert found == [["sweep.created", *["note"] * 2 * BATCH, TERMINAL_EVENT]] * 10


def test_an_idle_stream_sends_keep_alive_comments(fakes: Fakes, app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("creditgrid.service.api.routes.events.KEEP_ALIVE_S", 0.3)
    with listening(app) as url, httpx.Client(base_url=url, timeout=5) as client:
        sweep = client.post("/v1/sweeps", json=SPEC).json()["id"]
        with client.stream("GET", f"/v1/sweeps/{sweep}/events") as response:
            lines = response.iter_lines()
            assert ": ping" in (next(lines) for _ in range(12))


def test_a_stream_that_fails_is_cut_off(http: httpx.Client, fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = http.post("/v1/sweeps", json=SPEC).json()["id"]

    def unavailable(*_: object) -> None:
        raise OperationalError("SELECT", {}, Exception("the server closed the connection"))

    with http.stream("GET", f"/v1/sweeps/{sweep}/events") as response:
        lines = response.iter_lines()
        next(lines)
        monkeypatch.setattr(fakes.sweeps, "events", unavailable)
        fakes.ledger.emit(sweep, "note")
        with pytest.raises(httpx.RemoteProtocolError):  # a normal end would mean that these are all the events
            list(lines)


def test_streams_end_when_the_service_stops(fakes: Fakes, app: FastAPI) -> None:
    ended = threading.Event()

    def watch(url: str, sweep: str) -> None:
        with httpx.stream("GET", f"{url}/v1/sweeps/{sweep}/events", timeout=20) as response:
            for _ in response.iter_lines():
                pass
        ended.set()

    with listening(app) as url:
        sweep = httpx.post(f"{url}/v1/sweeps", json=SPEC).json()["id"]
        thread = threading.Thread(target=watch, args=(url, sweep))
        thread.start()
        time.sleep(0.5)
        start = time.monotonic()
        app.state.context.stopping.set()  # as our server does when it starts to stop
    assert time.monotonic() - start < 15  # uvicorn would wait for 20 s
    thread.join()
    assert ended.is_set()
