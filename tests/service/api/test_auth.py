"""Who may use the service."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import SecretStr
from service_fakes import AppClient, Fakes, serving

from creditgrid.service.api.app import create_app
from creditgrid.service.settings import Settings

TOKEN = "correct-horse-battery-staple"
PROTECTED = [
    ("GET", "/v1/sweeps"),
    ("POST", "/v1/sweeps"),
    ("POST", "/v1/plans"),
    ("POST", "/v1/query"),
    ("GET", "/v1/experiments"),
    ("GET", "/v1/sweeps/s0001"),
    ("GET", "/v1/sweeps/s0001/events"),
    ("GET", "/v1/sweeps/s0001/results"),
    ("GET", "/v1/sweeps/s0001/curves"),
    ("POST", "/v1/sweeps/s0001/cancel"),
    ("GET", f"/v1/artifacts/{'a' * 64}"),
    ("GET", "/v1/nothing"),
    ("GET", "/v1"),
    ("DELETE", "/v1/sweeps"),
]


@pytest.fixture
def guarded(fakes: Fakes, settings: Settings) -> Iterator[AppClient]:
    with_token = Settings(data_dir=settings.data_dir, host="0.0.0.0", token=SecretStr(TOKEN), grace_s=0)
    with serving(create_app(fakes.services(), with_token)) as client:
        yield client


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer \xff"],
)
def test_every_v1_request_needs_the_token(guarded: AppClient, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    for method, path in PROTECTED:
        response = guarded.request(method, path, headers=headers)
        assert response.status_code == 401, (method, path)
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert response.headers["content-type"] == "application/problem+json"
        assert "Authorization: Bearer" in response.json()["detail"]
        assert TOKEN not in response.text


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_right_token_is_accepted(guarded: AppClient, scheme: str) -> None:
    response = guarded.get("/v1/sweeps", headers={"Authorization": f"{scheme} {TOKEN}", "Host": "grid.example.org"})
    assert response.status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"])
def test_open_paths(guarded: AppClient, path: str) -> None:
    assert guarded.get(path).status_code == 200


def test_a_refused_request_is_not_read(guarded: AppClient, fakes: Fakes) -> None:
    response = guarded.post("/v1/sweeps", json={"name": "n", "experiment": "linesearch"})
    assert response.status_code == 401
    assert fakes.ledger.sweeps == {}


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "", "[::1", "0.0.0.0"]
)
def test_without_a_token_foreign_hosts_are_refused(client: AppClient, host: str) -> None:
    response = client.get("/v1/sweeps", headers={"Host": host})
    assert response.status_code == 400
    assert "localhost" in response.json()["detail"]


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1"])
def test_without_a_token_loopback_hosts_pass(client: AppClient, host: str) -> None:
    assert client.get("/v1/sweeps", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost.evil.example", "null", "http://[::1"])
def test_without_a_token_foreign_pages_are_refused(client: AppClient, sweep: str, fakes: Fakes, origin: str) -> None:
    response = client.post(f"/v1/sweeps/{sweep}/cancel", headers={"Origin": origin})
    assert response.status_code == 403
    assert not fakes.ledger.sweeps[sweep].state.finished


def test_pages_of_this_machine_pass(client: AppClient) -> None:
    assert client.get("/v1/sweeps", headers={"Origin": "http://localhost:8888"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://localhost:8888"},
        {"Origin": "http://127.0.0.1:8000"},
        {"Origin": "http://localhost"},
        {"Origin": "https://localhost:8000"},
        {"Origin": "http://localhost:99999"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-site"},
    ],
)
def test_only_own_pages_may_change_anything(
    client: AppClient, sweep: str, fakes: Fakes, headers: dict[str, str]
) -> None:
    response = client.post(f"/v1/sweeps/{sweep}/cancel", headers=headers)
    assert response.status_code == 403
    assert "this service" in response.json()["detail"]
    assert not fakes.ledger.sweeps[sweep].state.finished


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://localhost:8000"},
        {"Origin": "http://LOCALHOST:8000", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://127.0.0.1", "Host": "127.0.0.1:80"},
        {"Origin": "http://[::1]:8000", "Host": "[::1]:8000"},
    ],
)
def test_own_pages_may_change_something(client: AppClient, sweep: str, headers: dict[str, str]) -> None:
    assert client.post(f"/v1/sweeps/{sweep}/cancel", headers=headers).status_code == 200
