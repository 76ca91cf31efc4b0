"""Fixtures of the service's tests: an app over fakes, and the logging of the test process."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from service_fakes import AppClient, Fakes, serving

from creditgrid.service.api.app import create_app
from creditgrid.service.settings import Settings


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not see a developer's own CREDITGRID_… variables."""
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
    """A running sweep."""
    response = client.post("/v1/sweeps", json={"name": "one", "experiment": "linesearch"})
    assert response.status_code == 201
    return str(response.json()["id"])


@pytest.fixture
def logging_restored() -> Iterator[None]:
    """Undoes what a test changes of the process's logging."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
