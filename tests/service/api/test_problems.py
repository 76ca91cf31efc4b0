"""Every error is a problem document."""

from __future__ import annotations

import pytest
import structlog
from service_fakes import AppClient, Fakes, problem_in
from sqlalchemy.exc import OperationalError

from creditgrid.core import errors
from creditgrid.service.api.problems import STATUS, problem_from_error

SPEC = {"name": "n", "experiment": "linesearch"}
JSON = {"Content-Type": "application/json"}


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
    assert STATUS[-1][0] is errors.CreditGridError  # so every new error has a status


def test_faults_of_a_spec_carry_pointers(client: AppClient) -> None:
    problem = problem_in(client.post("/v1/plans", json={}), 422)
    assert [(error.pointer, error.detail) for error in problem.errors] == [
        ("/name", "name is missing"),
        ("/experiment", "experiment is missing"),
    ]
    assert "2 faults" in problem.detail


def test_unknown_route_and_method(client: AppClient) -> None:
    assert "/docs" in problem_in(client.get("/v1/nowhere"), 404).detail
    assert "/docs" in problem_in(client.get("/nowhere"), 404).detail
    response = client.request("DELETE", "/v1/plans")
    assert "POST" in problem_in(response, 405).detail
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/sweeps", "GET, POST"),
        ("/v1/sweeps/s1", "GET"),
        ("/v1/sweeps/s1/cancel", "POST"),
        ("/v1/gc", "POST"),
        ("/healthz", "GET"),
        ("/docs", "GET, HEAD"),
    ],
)
def test_a_refused_method_names_all_that_the_path_has(client: AppClient, path: str, methods: str) -> None:
    response = client.request("PUT", path)
    assert methods in problem_in(response, 405).detail
    assert response.headers["allow"] == methods


def test_invalid_parameters_are_named(client: AppClient) -> None:
    for query in ("limit=0", "limit=1001", "limit=x", "state=gone"):
        problem = problem_in(client.get(f"/v1/sweeps?{query}"), 422)
        assert query.partition("=")[0] in problem.detail
    assert (
        "idempotency-key"
        in problem_in(client.post("/v1/sweeps", json=SPEC, headers={"Idempotency-Key": "k" * 256}), 422).detail
    )


def test_invalid_bodies_point_into_the_body(client: AppClient) -> None:
    assert problem_in(client.post("/v1/query", json={"sql": ""}), 422).errors[0].pointer == "/sql"
    assert problem_in(client.post("/v1/query", json={}), 422).errors[0].pointer == "/sql"
    assert "JSON" in problem_in(client.post("/v1/query", content=b"{", headers=JSON), 422).detail


def test_an_unexpected_error_is_logged_and_not_shown(client: AppClient) -> None:
    with structlog.testing.capture_logs() as logs:
        response = client.post("/v1/plans", json={"name": "crash", "experiment": "linesearch"})
    problem = problem_in(response, 500)
    assert "secret" not in response.text
    assert "ZeroDivision" not in response.text
    assert "traceback" in problem.detail
    assert response.headers["x-request-id"]
    (entry,) = [entry for entry in logs if entry["event"] == "request failed"]
    assert entry["exc_info"]


def test_data_that_is_missing(client: AppClient) -> None:
    assert (
        problem_in(client.post("/v1/plans", json={"name": "missing-data", "experiment": "x"}), 422).detail
        == "no such dataset"
    )


def test_a_ledger_that_is_unavailable(fakes: Fakes, client: AppClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise OperationalError("SELECT secret", {}, Exception("the server closed the connection"))

    monkeypatch.setattr(fakes.sweeps, "get", away)
    with structlog.testing.capture_logs() as logs:
        response = client.get("/v1/sweeps/s0001")
    assert "try again" in problem_in(response, 503).detail
    assert "SELECT" not in response.text
    assert int(response.headers["retry-after"]) > 0
    (entry,) = [entry for entry in logs if entry["event"] == "the ledger is unavailable"]
    assert entry["reason"] == "the server closed the connection"


def test_a_body_with_many_faults_gets_some_of_them(client: AppClient) -> None:
    problem = problem_in(client.post("/v1/gc", json={f"key{i}": 1 for i in range(1000)}), 422)
    assert len(problem.errors) == 21
    assert problem.errors[-1].detail == "and 980 more"
