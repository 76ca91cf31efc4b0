"""The application as a whole, some of it over a real socket."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from service_fakes import Fakes, serving
from sqlalchemy.exc import OperationalError

from creditgrid.core.wire import MAX_SPEC_BYTES, TERMINAL_EVENT
from creditgrid.service.api.app import create_app
from creditgrid.service.settings import Settings

SPEC = {"name": "one", "experiment": "linesearch"}


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """uvicorn on a free port, in a thread; yields its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def app(fakes: Fakes, settings: Settings) -> FastAPI:
    return create_app(fakes.services(), settings)


@pytest.fixture
def http(app: FastAPI) -> Iterator[httpx.Client]:
    with listening(app) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client


def test_the_scheduler_lives_with_the_app(fakes: Fakes, settings: Settings) -> None:
    grace = settings.model_copy(update={"grace_s": 3.5})
    with serving(create_app(fakes.services(), grace)):
        assert fakes.scheduler.running
    assert not fakes.scheduler.running
    assert fakes.scheduler.stopped_with == 3.5


def test_apps_share_nothing(fakes: Fakes, settings: Settings) -> None:
    first, second = (create_app(fakes.services(), settings) for _ in range(2))
    with serving(first) as one, serving(second) as other:
        one.get("/v1/experiments")
        assert "/v1/experiments" in one.get("/metrics").text
        assert "/v1/experiments" not in other.get("/metrics").text


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


def test_events_of_a_running_sweep_come_as_they_happen(http: httpx.Client, fakes: Fakes) -> None:
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
        found = list(messages(response))  # ends by itself
    thread.join()
    assert [kind for _, kind, _ in found] == ["sweep.created", "call.started", "call.finished", TERMINAL_EVENT]
    for at, (_, _, arrived) in zip(emitted, found[1:3], strict=True):
        assert arrived - at < 0.5 + 1  # the poll's quarter of a second, and a busy machine
    with http.stream("GET", f"/v1/sweeps/{sweep}/events", headers={"Last-Event-ID": str(found[1][0])}) as response:
        assert [number for number, _, _ in messages(response)] == [number for number, _, _ in found[2:]]


def test_a_client_that_goes_away_is_not_served_on(
    http: httpx.Client, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = http.post("/v1/sweeps", json=SPEC).json()["id"]
    asked = 0
    inner = fakes.sweeps.events

    def counted(*arguments: object) -> object:
        nonlocal asked
        asked += 1
        return inner(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fakes.sweeps, "events", counted)
    with http.stream("GET", f"/v1/sweeps/{sweep}/events") as response:
        next(response.iter_lines())
        time.sleep(0.6)
    time.sleep(0.8)
    before = asked
    assert before > 2
    time.sleep(1)
    assert asked == before


def test_silence_is_kept_alive(fakes: Fakes, app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
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
        app.state.context.stopping.set()  # what our server does first when it is asked to stop
    assert time.monotonic() - start < 15  # of the 20 s that it would wait
    thread.join()
    assert ended.is_set()


def test_a_hundred_megabytes_are_refused(http: httpx.Client) -> None:
    size = 100 * 2**20
    headers = {"Content-Type": "application/json"}
    response = http.post("/v1/sweeps", content=b" " * size, headers=headers)
    assert response.status_code == 413
    assert f"{MAX_SPEC_BYTES:,}" in response.json()["detail"]
    chunked = http.post("/v1/plans", content=(b" " * 2**20 for _ in range(100)), headers=headers)
    assert chunked.status_code == 413
    assert http.get("/healthz").status_code == 200


def test_a_client_that_asks_first_is_not_made_to_send(http: httpx.Client) -> None:
    with socket.create_connection((http.base_url.host, http.base_url.port or 0), timeout=5) as connection:
        head = (
            f"POST /v1/sweeps HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {MAX_SPEC_BYTES * 10}\r\nExpect: 100-continue\r\n\r\n"
        )
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_requests_are_answered_while_queries_run(http: httpx.Client) -> None:
    endless = {"sql": "SELECT count(*) FROM range(1000000000000) t(i) WHERE i % 7 = 3"}
    answers: list[int] = []

    def ask() -> None:
        with suppress(httpx.HTTPError):  # the service stops before it answers
            answers.append(httpx.post(f"{http.base_url}/v1/query", json=endless, timeout=60).status_code)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    slowest = 0.0
    for _ in range(20):
        start = time.monotonic()
        assert http.get("/v1/sweeps").status_code == 200
        slowest = max(slowest, time.monotonic() - start)
        time.sleep(0.05)
    assert slowest < 2
    assert not answers  # they are running or waiting; stopping the service ends them
    http.close()
