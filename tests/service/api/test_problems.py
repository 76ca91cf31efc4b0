"""Every error is a problem document."""

from __future__ import annotations

import json
from typing import Any

import pytest
import structlog
from service_fakes import AppClient, Fakes, serving
from sqlalchemy.exc import OperationalError

from creditgrid.core import errors
from creditgrid.core.wire import MAX_SPEC_BYTES, Problem
from creditgrid.service.api.app import create_app
from creditgrid.service.api.problems import STATUS, problem_from_error
from creditgrid.service.settings import Settings

SPEC = {"name": "n", "experiment": "linesearch"}
JSON = {"Content-Type": "application/json"}


def check(response: Any, status: int) -> Problem:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(response.text)
    assert problem.status == status
    assert problem.title
    return problem


def test_statuses_of_errors() -> None:
    statuses = {
        errors.SpecError([errors.Fault("bad", "/axes/eta")]): 422,
        errors.DatasetError("x"): 422,
        errors.NotFoundError("x"): 404,
        errors.ArtifactMissing("x"): 404,
        errors.ArtifactCorrupt("x"): 500,
        errors.ConflictError("x"): 409,
        errors.QueryError("x"): 400,
        errors.RunnerError("x"): 503,
        errors.BusyError("x"): 503,
        errors.TaskError("x"): 500,
    }
    for error, status in statuses.items():
        assert problem_from_error(error).status == status
    assert problem_from_error(next(iter(statuses))).errors[0].pointer == "/axes/eta"
    assert STATUS[-1][0] is errors.CreditGridError  # whatever is added to the tree has a status


def test_faults_of_a_spec_carry_pointers(client: AppClient) -> None:
    problem = check(client.post("/v1/plans", json={}), 422)
    assert [(error.pointer, error.detail) for error in problem.errors] == [
        ("/name", "name is missing"),
        ("/experiment", "experiment is missing"),
    ]
    assert "2 faults" in problem.detail


def test_unknown_route_and_method(client: AppClient) -> None:
    assert "/docs" in check(client.get("/v1/nowhere"), 404).detail
    assert "/docs" in check(client.get("/nowhere"), 404).detail
    response = client.request("DELETE", "/v1/plans")
    assert "POST" in check(response, 405).detail
    assert response.headers["allow"] == "POST"


def test_invalid_parameters_are_named(client: AppClient) -> None:
    for query in ("limit=0", "limit=1001", "limit=x", "state=gone"):
        problem = check(client.get(f"/v1/sweeps?{query}"), 422)
        assert query.partition("=")[0] in problem.detail
    assert (
        "idempotency-key"
        in check(client.post("/v1/sweeps", json=SPEC, headers={"Idempotency-Key": "k" * 256}), 422).detail
    )


def test_invalid_bodies_point_into_the_body(client: AppClient) -> None:
    assert check(client.post("/v1/query", json={"sql": ""}), 422).errors[0].pointer == "/sql"
    assert check(client.post("/v1/query", json={}), 422).errors[0].pointer == "/sql"
    assert "JSON" in check(client.post("/v1/query", content=b"{", headers=JSON), 422).detail


def test_an_unexpected_error_is_logged_and_not_shown(client: AppClient) -> None:
    with structlog.testing.capture_logs() as logs:
        response = client.post("/v1/plans", json={"name": "crash", "experiment": "linesearch"})
    problem = check(response, 500)
    assert "secret" not in response.text
    assert "ZeroDivision" not in response.text
    assert "traceback" in problem.detail
    assert response.headers["x-request-id"]
    (entry,) = [entry for entry in logs if entry["event"] == "request failed"]
    assert entry["exc_info"]


def test_corrupt_artifacts_are_named(client: AppClient, fakes: Fakes) -> None:
    import numpy as np

    key = "ab" * 32
    fakes.store.save(key, {}, {"x": np.ones(3, np.float32)}, {})
    (fakes.store.path(key) / "tensors.safetensors").unlink()
    assert "gone" in check(client.get(f"/v1/artifacts/{key}"), 500).detail


@pytest.mark.parametrize(
    ("body", "content_type", "status", "said"),
    [
        (b"{", "application/json", 422, "line 1, column 2"),
        (b"", "application/json", 422, "JSON"),
        (b"[1]", "application/json", 422, "object"),
        (b'{"name": NaN}', "application/json", 422, "NaN"),
        (b'{"name": -Infinity}', "application/json", 422, "Infinity"),
        (b'{"name": 1, "name": 2}', "application/json", 422, "twice"),
        (b'{"name": "\\ud800", "experiment": "x"}', "application/json", 422, "surrogate"),
        (b"[" * 100_000, "application/json", 422, "deep"),
        (b"[" * 900 + b"]" * 900, "application/json", 422, ""),
        (b'{"name": ' + b"9" * 5000 + b"}", "application/json", 422, "digits"),
        ('{"name": "ü"}'.encode("latin-1"), "application/json", 422, "UTF-8"),
        ('{"name": "n"}'.encode("utf-16"), "application/json", 422, "UTF-8"),
        ("name: ü".encode("latin-1"), "application/yaml", 422, "UTF-8"),
        (b"name: [", "application/yaml", 422, ""),
        (b"a: &a [x]\nb: [*a, *a]", "text/yaml", 422, "alias"),
        (b"!!python/object/apply:os.system ['true']", "application/x-yaml", 422, "tag"),
        (b"[" * 100_000, "application/yaml", 422, "deep"),
        (b"{}", "text/plain", 415, "application/json"),
        (b"{}", "application/x-www-form-urlencoded", 415, "application/yaml"),
        (b"{}", "", 415, "application/json"),
        (b"\x00\x01\x02", "application/json", 422, "JSON"),
    ],
)
def test_bad_specs(client: AppClient, body: bytes, content_type: str, status: int, said: str) -> None:
    for path in ("/v1/plans", "/v1/sweeps"):
        response = client.post(path, content=body, headers={"Content-Type": content_type} if content_type else {})
        assert said in check(response, status).detail
    assert client.get("/v1/sweeps").json()["items"] == []


@pytest.mark.parametrize("path", ["/v1/plans", "/v1/sweeps", "/v1/query", "/v1/sweeps/s0001/cancel"])
def test_too_long_by_announcement(client: AppClient, path: str) -> None:
    response = client.post(path, content=b" " * (MAX_SPEC_BYTES + 1), headers=JSON)
    assert f"{MAX_SPEC_BYTES:,}" in check(response, 413).detail


@pytest.mark.parametrize("path", ["/v1/plans", "/v1/sweeps", "/v1/query"])
def test_too_long_while_streaming(client: AppClient, path: str) -> None:
    sent = 0

    async def body() -> Any:
        nonlocal sent
        for _ in range(64):
            sent += 2**18
            yield b" " * 2**18

    response = client.post(path, content=body(), headers=JSON)
    assert f"{MAX_SPEC_BYTES:,}" in check(response, 413).detail
    assert sent > MAX_SPEC_BYTES


def test_a_spec_at_the_limit_is_read(client: AppClient) -> None:
    spec = json.dumps(SPEC).encode()
    assert client.post("/v1/plans", content=spec.ljust(MAX_SPEC_BYTES), headers=JSON).status_code == 200


def test_data_that_is_missing(client: AppClient) -> None:
    assert (
        check(client.post("/v1/plans", json={"name": "missing-data", "experiment": "x"}), 422).detail
        == "no such dataset"
    )


def test_a_ledger_that_is_unavailable(fakes: Fakes, client: AppClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise OperationalError("SELECT secret", {}, Exception("the server closed the connection"))

    monkeypatch.setattr(fakes.sweeps, "get", away)
    with structlog.testing.capture_logs() as logs:
        response = client.get("/v1/sweeps/s0001")
    assert "try again" in check(response, 503).detail
    assert "SELECT" not in response.text
    assert int(response.headers["retry-after"]) > 0
    (entry,) = [entry for entry in logs if entry["event"] == "the ledger is unavailable"]
    assert entry["reason"] == "the server closed the connection"


def test_not_ready(fakes: Fakes, settings: Settings) -> None:
    fakes.scheduler.trouble = "the cluster is away"
    with serving(create_app(fakes.services(), settings)) as client:
        response = client.get("/readyz")
        assert check(response, 503).detail == "the cluster is away"
        assert response.headers["retry-after"]
        assert client.get("/healthz").status_code == 200
