"""Liveness and readiness."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from service_fakes import AppClient, Fakes, problem_in, serving

from creditgrid.core.errors import NotFoundError
from creditgrid.service.api.app import create_app
from creditgrid.service.settings import Settings

THREADS = 40
"""AnyIO's threads for functions that are not async."""


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


def test_probes_need_no_free_thread(fakes: Fakes, client: AppClient, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    waiting = threading.Semaphore(0)

    def wait(*_: object) -> None:
        waiting.release()
        release.wait(60)
        raise NotFoundError("it waited")

    monkeypatch.setattr(fakes.tasks, "get", wait)
    with ThreadPoolExecutor(THREADS) as pool:
        answers = [pool.submit(client.get, "/v1/tasks/a") for _ in range(THREADS)]
        for _ in range(THREADS):  # so many threads serve requests
            assert waiting.acquire(timeout=60)
        try:
            for path in ("/healthz", "/readyz", "/metrics"):
                assert client.get(path).status_code == 200
        finally:
            release.set()
        assert {answer.result().status_code for answer in answers} == {404}
