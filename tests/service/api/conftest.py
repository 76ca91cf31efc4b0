"""An app on a socket, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI
from service_fakes import Fakes, listening

from creditgrid.service.api.app import create_app
from creditgrid.service.settings import Settings


@pytest.fixture
def app(fakes: Fakes, settings: Settings) -> FastAPI:
    return create_app(fakes.services(), settings)


@pytest.fixture
def http(app: FastAPI) -> Iterator[httpx.Client]:
    with listening(app) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client
