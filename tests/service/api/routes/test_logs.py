"""Logs over HTTP: text as it is, from a position on, its end, and as it grows."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI
from service_fakes import AppClient, Fakes, listening, problem_in

from creditgrid.core.wire import LogView, Page
from creditgrid.service.api import log_followers, shared_reads
from creditgrid.service.api.app import create_app
from creditgrid.service.settings import Settings

PATH = f"/v1/tasks/{'a' * 64}/logs"


def test_a_log_is_plain_text_that_nobody_takes_for_html(client: AppClient, fakes: Fakes) -> None:
    fakes.logs.text = b"<script>\x1b[31m\0\n"
    found = client.get(PATH)
    assert found.content == fakes.logs.text
    assert found.headers["content-type"] == "text/plain; charset=utf-8"
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["cache-control"] == "no-store"
    assert (found.headers["x-log-dropped"], found.headers["x-log-ended"]) == ("0", "true")
    assert client.get(PATH, params={"after": found.headers["x-log-next"]}).content == b""
    assert client.get(PATH, params={"tail": 2}).content == b"\0\n"
    assert client.get(PATH, params={"tail": 0}).content == b""
    assert client.get(PATH, params={"tail": 2**63 - 1}).content == fakes.logs.text


def test_a_task_without_output_has_an_empty_text_and_an_unknown_one_none(client: AppClient) -> None:
    found = client.get(PATH)
    assert (found.status_code, found.content) == (200, b"")
    problem_in(client.get(f"/v1/tasks/{'b' * 64}/logs"), 404)
    problem_in(client.get(f"/v1/tasks/{'b' * 64}/logs", params={"follow": True}), 404)
    problem_in(client.get("/v1/tasks/..%2f..%2fetc/logs"), 404)


@pytest.mark.parametrize("query", ["tail=-1", "tail=x", "follow=perhaps", "tail=9223372036854775808"])
def test_bad_options_are_refused(client: AppClient, query: str) -> None:
    problem_in(client.get(f"{PATH}?{query}"), 422)


def test_a_bad_position_is_refused(client: AppClient) -> None:
    problem_in(client.get(f"{PATH}?after=x"), 400)


def test_the_logs_of_a_sweep(client: AppClient, fakes: Fakes, sweep: str) -> None:
    path = f"/v1/sweeps/{sweep}/logs"
    assert client.get(path).json() == {"items": [], "next": None}
    fakes.logs.text = b"text"
    (view,) = Page[LogView].model_validate_json(client.get(path, params={"limit": 7}).text).items
    assert (view.kind, view.bytes) == ("train", 4)
    problem_in(client.get("/v1/sweeps/none/logs"), 404)
    problem_in(client.get(path, params={"limit": 0}), 422)


def test_the_list_of_logs_follows_what_is_printed(
    client: AppClient, fakes: Fakes, sweep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is a change of the ledger."""
    now = 1000.0
    monkeypatch.setattr(shared_reads, "monotonic", lambda: now)
    for text in (b"one", b"one two"):
        fakes.logs.text = text
        (view,) = Page[LogView].model_validate_json(client.get(f"/v1/sweeps/{sweep}/logs").text).items
        assert view.bytes == len(text)
        now += 3.0


@pytest.fixture
def app(fakes: Fakes, settings: Settings) -> FastAPI:
    return create_app(fakes.services(), settings)


@pytest.fixture
def url(app: FastAPI) -> Iterator[str]:
    with listening(app) as found:
        yield found


def wait_for_followers(app: FastAPI, number: int) -> None:
    deadline = time.monotonic() + 30
    while app.state.context.log_followers.open != number:  # the server notices it a moment after its client
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_log_is_followed_until_its_call_ends(url: str, app: FastAPI, fakes: Fakes) -> None:
    fakes.logs.text, fakes.logs.ended = b"one\n", False
    with httpx.stream("GET", url + PATH, params={"follow": True}) as response:
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        chunks = response.iter_bytes()
        assert next(chunks) == b"one\n"
        assert app.state.context.log_followers.open == 1
        fakes.logs.text += b"two\n"
        assert next(chunks) == b"two\n"
        fakes.logs.text += b"three\n"
        fakes.logs.ended = True
        assert b"".join(chunks) == b"three\n"
    wait_for_followers(app, 0)


def test_a_follower_of_a_task_that_has_not_printed_waits(url: str, app: FastAPI, fakes: Fakes) -> None:
    fakes.logs.text, fakes.logs.ended = b"", False
    with httpx.stream("GET", url + PATH, params={"follow": True}) as response:  # the head comes at once
        assert (response.status_code, app.state.context.log_followers.open) == (200, 1)
        fakes.logs.text, fakes.logs.ended = b"one\n", True
        assert response.read() == b"one\n"


def test_a_stopping_service_ends_the_followers(url: str, app: FastAPI, fakes: Fakes) -> None:
    fakes.logs.text, fakes.logs.ended = b"one\n", False
    with httpx.stream("GET", url + PATH, params={"follow": True, "tail": 2}) as response:
        chunks = response.iter_bytes()
        assert next(chunks) == b"e\n"
        threading.Timer(0.1, app.state.context.stop).start()
        assert list(chunks) == []


def test_followers_are_bounded(url: str, app: FastAPI, fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_followers, "MOST", 1)
    fakes.logs.text, fakes.logs.ended = b"one\n", False
    with httpx.stream("GET", url + PATH, params={"follow": True}) as response:
        chunks = response.iter_bytes()
        assert next(chunks) == b"one\n"
        refused = httpx.get(url + PATH, params={"follow": True})
        assert "1 logs are followed already" in problem_in(refused, 503).detail
        assert refused.headers["retry-after"] == "5"
        assert httpx.get(url + PATH).text == "one\n"
    fakes.logs.ended = True
    wait_for_followers(app, 0)
    assert httpx.get(url + PATH, params={"follow": True}).text == "one\n"
