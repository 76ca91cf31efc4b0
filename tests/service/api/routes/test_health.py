"""Liveness and readiness."""

from __future__ import annotations

from service_fakes import AppClient, Fakes, problem_in, serving

from creditgrid.service.api.app import create_app
from creditgrid.service.settings import Settings


def test_health(client: AppClient, fakes: Fakes) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    assert fakes.scheduler.running


def test_not_ready(fakes: Fakes, settings: Settings) -> None:
    fakes.scheduler.trouble = "the cluster is unavailable"
    with serving(create_app(fakes.services(), settings)) as client:
        response = client.get("/readyz")
        assert problem_in(response, 503).detail == "the cluster is unavailable"
        assert response.headers["retry-after"]
        assert client.get("/healthz").status_code == 200
