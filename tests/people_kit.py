"""A service whose people have tokens, for tests: real parts over a ledger, and a runner that computes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from pydantic import SecretStr
from service_fakes import AppClient, listening, serving
from starlette.types import Message
from sweeping import ScriptedRunner

from creditgrid.service.api.app import create_app
from creditgrid.service.codes import Codes
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.people.actor import UNLIMITED, Limits
from creditgrid.service.results.curves import Curves
from creditgrid.service.results.table import Results
from creditgrid.service.services import Services, wire_services
from creditgrid.service.settings import Settings
from creditgrid.workers.artifacts import ArtifactStore

ADMIN_TOKEN = "the-token-of-the-settings"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@dataclass(frozen=True)
class Lab:
    """One service with an administrator's token."""

    app: FastAPI
    client: AppClient
    services: Services
    ledger: Ledger
    runner: ScriptedRunner

    def ask(self, method: str, path: str, token: str = ADMIN_TOKEN, **options: Any) -> httpx.Response:
        return self.client.request(method, path, headers=bearer(token), **options)

    def token(self, name: str, **request: Any) -> str:
        """The text of a new token."""
        answer = self.ask("POST", "/v1/tokens", json={"name": name, "role": "submit", **request})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["token"])

    def submit(self, token: str, first: int = 0, cells: int = 1, **document: Any) -> httpx.Response:
        """A sweep of cells that no other sweep has, unless ``first`` says so."""
        axes = {"x": list(range(first, first + cells))}
        return self.ask("POST", "/v1/sweeps", token, json={"name": "n", "experiment": "noop", "axes": axes, **document})

    def audit(self, **query: str) -> list[dict[str, Any]]:
        """The rows of the audit log, the oldest first."""
        answer = self.ask("GET", "/v1/audit", params={"limit": "1000", **query})
        assert answer.status_code == 200, answer.text
        return list(reversed(answer.json()["items"]))

    def status_of(self, method: str, path: str, token: str) -> int:
        """The status of a request with exactly this path; its body must not be read."""

        async def receive() -> Message:
            raise AssertionError("the body was read")

        statuses: list[int] = []

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        headers = [(b"authorization", f"Bearer {token}".encode())]
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}
        asyncio.run(self.app(scope, receive, send))
        return statuses[0]


@contextmanager
def lab_on_a_socket(root: Path) -> Iterator[str]:
    """The URL of such a service, for a client."""
    with _made(root, UNLIMITED) as (app, *_), listening(app) as url:
        yield url


@contextmanager
def open_lab(root: Path, limits: Limits = UNLIMITED, url: str | None = None) -> Iterator[Lab]:
    with _made(root, limits, url) as (app, services, ledger, runner), serving(app) as client:
        yield Lab(app, client, services, ledger, runner)


@contextmanager
def _made(
    root: Path, limits: Limits, url: str | None = None
) -> Iterator[tuple[FastAPI, Services, Ledger, ScriptedRunner]]:
    root.mkdir(exist_ok=True)
    store = ArtifactStore(root / "artifacts")
    ledger = Ledger(url or f"sqlite:///{root / 'ledger.sqlite'}")
    results = Results(root / "results", ledger.identity())
    curves = Curves(root / "curves", ledger.identity())
    runner = ScriptedRunner(store)
    codes = Codes(store, allowed=True)
    services = wire_services(ledger, results, curves, store, runner, limits=limits, codes=codes)
    app = create_app(services, Settings(data_dir=root, token=SecretStr(ADMIN_TOKEN), grace_s=0))
    try:
        yield app, services, ledger, runner
    finally:
        ledger.close()
