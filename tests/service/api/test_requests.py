"""Requests are logged, and no secret."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from pydantic import SecretStr
from service_fakes import AppClient, Fakes, serving

from creditgrid.service.api.app import create_app
from creditgrid.service.logging import configure_logging
from creditgrid.service.settings import Settings

TOKEN = "correct-horse-battery-staple"


pytestmark = pytest.mark.usefixtures("logging_restored")


@pytest.fixture
def guarded(fakes: Fakes, settings: Settings) -> Iterator[AppClient]:
    with_token = Settings(data_dir=settings.data_dir, token=SecretStr(TOKEN), grace_s=0)
    with serving(create_app(fakes.services(), with_token)) as client:
        yield client


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_one_json_line_a_request(guarded: AppClient, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    headers = {"Authorization": f"Bearer {TOKEN}", "X-Request-ID": "abc-1"}
    response = guarded.get("/v1/sweeps?limit=5", headers=headers)
    assert response.headers["x-request-id"] == "abc-1"
    (entry,) = lines(capsys.readouterr().err)
    assert {name: entry[name] for name in ("event", "level", "method", "path", "status", "request")} == {
        "event": "request",
        "level": "info",
        "method": "GET",
        "path": "/v1/sweeps",
        "status": 200,
        "request": "abc-1",
    }
    assert isinstance(entry["ms"], float)
    assert str(entry["timestamp"]).endswith("Z")


@pytest.mark.parametrize("form", ["json", "console", "auto"])
def test_no_secret_is_logged(guarded: AppClient, capsys: pytest.CaptureFixture[str], form: str) -> None:
    configure_logging(form)  # type: ignore[arg-type]
    spec = {"name": "crash", "experiment": "linesearch", "fixed": {"x": "private-value"}}
    for token in (TOKEN, "wrong-token-wrong-token"):
        headers = {"Authorization": f"Bearer {token}"}
        guarded.get(f"/v1/sweeps?token={token}", headers=headers)
        guarded.post("/v1/plans", json=spec, headers=headers)  # logs a traceback
        guarded.get("/v1/sweeps", headers={"Authorization": f"Basic {token}"})
    printed = capsys.readouterr()
    text = printed.err + printed.out
    assert "/v1/plans" in text
    assert "ZeroDivisionError" in text
    for secret in (TOKEN, "wrong-token", "Bearer", "private-value"):
        assert secret not in text


def test_request_ids_cannot_forge_lines(guarded: AppClient, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    for given in ("x" * 65, "a b", 'a"b', "é"):
        response = guarded.get("/healthz", headers={"X-Request-ID": given.encode()})
        assert response.headers["x-request-id"] != given
        assert len(response.headers["x-request-id"]) == 16


def test_probes_are_not_logged(guarded: AppClient, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    for path in ("/healthz", "/readyz", "/metrics"):
        guarded.get(path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("path", ["/v1/plans", "/v1/query", "/v1/checkpoints"])
def test_a_client_that_goes_in_mid_body(http: httpx.Client, capsys: pytest.CaptureFixture[str], path: str) -> None:
    configure_logging("json")
    kind = "application/octet-stream" if path == "/v1/checkpoints" else "application/json"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: 1000\r\n\r\n{{"
    with socket.create_connection((http.base_url.host, http.base_url.port or 0), timeout=20) as connection:
        connection.sendall(head.encode())
        time.sleep(0.2)
    series = f'method="POST",route="{path}",status="499"'
    deadline = time.monotonic() + 20
    while series not in http.get("/metrics").text:
        assert time.monotonic() < deadline, http.get("/metrics").text
        time.sleep(0.05)
    assert 'status="500"' not in http.get("/metrics").text
    (entry,) = lines(capsys.readouterr().err)
    assert (entry["event"], entry["level"], entry["status"]) == ("request", "info", 499)
