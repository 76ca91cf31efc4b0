"""The limit on the length of request bodies."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from typing import Any

import httpx
import pytest
from service_fakes import AppClient, problem_in

from creditgrid.core.wire import MAX_SPEC_BYTES
from creditgrid.service.api import body_limit

SPEC = {"name": "n", "experiment": "linesearch"}
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("path", ["/v1/plans", "/v1/sweeps", "/v1/query", "/v1/sweeps/s0001/cancel"])
def test_a_content_length_over_the_limit(client: AppClient, path: str) -> None:
    response = client.post(path, content=b" " * (MAX_SPEC_BYTES + 1), headers=JSON)
    assert f"{MAX_SPEC_BYTES:,}" in problem_in(response, 413).detail


@pytest.mark.parametrize("path", ["/v1/plans", "/v1/sweeps", "/v1/query"])
def test_a_streamed_body_over_the_limit(client: AppClient, path: str) -> None:
    sent = 0

    async def body() -> Any:
        nonlocal sent
        for _ in range(64):
            sent += 2**18
            yield b" " * 2**18

    response = client.post(path, content=body(), headers=JSON)
    assert f"{MAX_SPEC_BYTES:,}" in problem_in(response, 413).detail
    assert sent > MAX_SPEC_BYTES


def test_a_spec_at_the_limit_is_read(client: AppClient) -> None:
    spec = json.dumps(SPEC).encode()
    assert client.post("/v1/plans", content=spec.ljust(MAX_SPEC_BYTES), headers=JSON).status_code == 200


def test_a_hundred_megabytes_are_refused(http: httpx.Client) -> None:
    size = 100 * 2**20
    headers = {"Content-Type": "application/json"}
    response = http.post("/v1/sweeps", content=b" " * size, headers=headers)
    assert response.status_code == 413
    assert f"{MAX_SPEC_BYTES:,}" in response.json()["detail"]
    chunked = http.post("/v1/plans", content=(b" " * 2**20 for _ in range(100)), headers=headers)
    assert chunked.status_code == 413
    assert http.get("/healthz").status_code == 200


def test_a_client_that_waits_for_100_continue_gets_the_refusal(http: httpx.Client) -> None:
    with socket.create_connection((http.base_url.host, http.base_url.port or 0), timeout=5) as connection:
        head = (
            f"POST /v1/sweeps HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {MAX_SPEC_BYTES * 10}\r\nExpect: 100-continue\r\n\r\n"
        )
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("path", ["/v1/plans", "/v1/sweeps", "/v1/query", "/v1/gc", "/v1/checkpoints"])
def test_a_body_that_trickles(http: httpx.Client, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(body_limit, "BODY_S", 0.5)
    kind = "application/octet-stream" if path == "/v1/checkpoints" else "application/json"
    with connection_to(http, f"POST {path} HTTP/1.1\r\nContent-Type: {kind}\r\nContent-Length: 1000") as connection:
        answer = b""
        with suppress(OSError):
            for _ in range(200):
                connection.sendall(b" ")
                time.sleep(0.02)
        with suppress(OSError):
            answer = connection.recv(1000)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"application/problem+json" in answer


def test_a_body_over_the_limit_that_trickles(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limit, "BODY_S", 0.3)
    head = f"POST /v1/plans HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {10 * MAX_SPEC_BYTES}"
    with connection_to(http, head) as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_is_slow_but_not_too_slow(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limit, "BODY_S", 0.5)
    monkeypatch.setattr(body_limit, "LEAST_RATE", 10)
    text = json.dumps(SPEC)
    head = f"POST /v1/plans HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(text)}"
    with connection_to(http, head) as connection:
        for part in range(0, len(text), 10):
            connection.sendall(text[part : part + 10].encode())
            time.sleep(0.2)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_the_bodies_of_all_requests_together(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limit, "MAX_HELD_BYTES", 1000)
    headers = {"Content-Type": "application/json"}
    spec = json.dumps(SPEC)
    refused = http.post("/v1/plans", content=spec.ljust(2000), headers=headers)
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    for _ in range(3):  # what is answered is not held
        assert http.post("/v1/plans", content=spec.ljust(900), headers=headers).status_code == 200


def connection_to(http: httpx.Client, head: str) -> socket.socket:
    connection = socket.create_connection((http.base_url.host, http.base_url.port or 0), timeout=20)
    connection.sendall(f"{head}\r\nHost: localhost\r\n\r\n".encode())
    return connection
