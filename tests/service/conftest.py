"""Fixtures of the service's tests: an app over fakes, a service that tests step, a ledger's URL, and logging."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog
from postgresql import fresh_database
from service_fakes import AppClient, Fakes, serving

from creditgrid.service.api.app import create_app
from creditgrid.service.settings import Settings

if TYPE_CHECKING:
    from sweeping import House


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


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scheduler has no pauses; torch is left as it was."""
    import sweeping
    import torch

    sweeping.quick(monkeypatch)
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    yield
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(mode)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty ledger in each database; PostgreSQL where CREDITGRID_TEST_POSTGRES names a server."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.sqlite'}"
        return
    with fresh_database() as found:
        yield found.url


@pytest.fixture
def house(request: pytest.FixtureRequest, tmp_path: Path, no_pauses: None) -> Iterator[House]:
    """A service whose scheduler the test steps, checked at the end. A test that uses ``url`` has its ledger there."""
    from sweeping import House

    made = House(tmp_path, url=request.getfixturevalue("url") if "url" in request.fixturenames else None)
    yield made
    made.check()
    made.close()
