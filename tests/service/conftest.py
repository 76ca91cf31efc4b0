"""Fixtures of the HTTP front end's tests: an app over stand-ins for what is behind it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from service_fakes import AppClient, Fakes, serving

from creditgrid.service.api.app import create_app
from creditgrid.service.settings import Settings


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own CREDITGRID_… variables are none of a test's business."""
    for name in [name for name in os.environ if name.startswith("CREDITGRID_") and "TEST" not in name]:
        monkeypatch.delenv(name)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", query_timeout_s=5, query_max_rows=1000, grace_s=0)


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    return Fakes(tmp_path)


@pytest.fixture
def client(fakes: Fakes, settings: Settings) -> Iterator[AppClient]:
    """A client of an app without a token."""
    with serving(create_app(fakes.services(), settings)) as found:
        yield found


@pytest.fixture
def sweep(client: AppClient) -> str:
    """A sweep that runs."""
    response = client.post("/v1/sweeps", json={"name": "one", "experiment": "linesearch"})
    assert response.status_code == 201
    return str(response.json()["id"])
