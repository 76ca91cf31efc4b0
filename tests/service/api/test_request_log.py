"""Logs tell of requests, and of no secret."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from pydantic import SecretStr
from service_fakes import AppClient, Fakes, serving

from creditgrid.service.api.app import create_app
from creditgrid.service.api.request_log import configure
from creditgrid.service.settings import Settings

TOKEN = "correct-horse-battery-staple"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def guarded(fakes: Fakes, settings: Settings) -> Iterator[AppClient]:
    with_token = Settings(data_dir=settings.data_dir, token=SecretStr(TOKEN), grace_s=0)
    with serving(create_app(fakes.services(), with_token)) as client:
        yield client


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_one_json_line_a_request(guarded: AppClient, capsys: pytest.CaptureFixture[str]) -> None:
    configure("json")
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
    configure(form)  # type: ignore[arg-type]
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
    configure("json")
    for given in ("x" * 65, "a b", 'a"b', "é"):
        response = guarded.get("/healthz", headers={"X-Request-ID": given.encode()})
        assert response.headers["x-request-id"] != given
        assert len(response.headers["x-request-id"]) == 16


def test_probes_are_not_news(guarded: AppClient, capsys: pytest.CaptureFixture[str]) -> None:
    configure("json")
    for path in ("/healthz", "/readyz", "/metrics"):
        guarded.get(path)
    assert capsys.readouterr().err == ""


def test_other_libraries_log_in_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json")
    logging.getLogger("ray").warning("node %s is gone", "n1")
    (entry,) = lines(capsys.readouterr().err)
    assert (entry["event"], entry["level"]) == ("node n1 is gone", "warning")
