"""The application as a whole."""

from __future__ import annotations

import json
import re
import threading
import time
from contextlib import suppress

import httpx
from service_fakes import AppClient, Fakes, serving

from creditgrid.service.api.access import ROUTES
from creditgrid.service.api.app import create_app
from creditgrid.service.settings import Settings


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


def test_openapi_says_which_role_an_operation_needs(client: AppClient) -> None:
    for _ in range(2):
        paths = client.get("/openapi.json").json()["paths"]
        for (method, path), access in ROUTES.items():
            operation = paths[path.replace(":path}", "}")][method.lower()]
            assert operation["x-role"] == access.role
            assert operation["description"].count("needs the role") == 1


def test_references_of_openapi_lead_somewhere(client: AppClient) -> None:
    document = client.get("/openapi.json").json()
    references = set(re.findall(r'"\$ref": "([^"]*)"', json.dumps(document)))
    assert references
    for reference in references:
        found = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]


def test_openapi_describes_bodies_and_responses(client: AppClient) -> None:
    document = client.get("/openapi.json").json()
    submit = document["paths"]["/v1/sweeps"]["post"]
    assert set(submit["requestBody"]["content"]) == {"application/json", "application/yaml"}
    for rows in ("results", "curves"):
        described = document["paths"][f"/v1/sweeps/{{sweep}}/{rows}"]["get"]
        assert "text/csv" in described["responses"]["200"]["content"]
        assert "application/problem+json" in described["responses"]["default"]["content"]
    assert "HTTPBearer" in document["components"]["securitySchemes"]
    assert "422" not in submit["responses"] or "HTTPValidationError" not in json.dumps(submit["responses"])
