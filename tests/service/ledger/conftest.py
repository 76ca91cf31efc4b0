"""A ledger in each database that it may live in.

SQLite always; PostgreSQL where CREDITGRID_TEST_POSTGRES is the URL of a server whose user may create databases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from postgresql import fresh_database

from creditgrid.service.ledger.ledger import Ledger


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.sqlite'}"
        return
    with fresh_database() as found:
        yield found.url


@pytest.fixture
def opened(url: str) -> Iterator[Callable[[], Ledger]]:
    """Opens the ledger, as often as one likes."""
    made: list[Ledger] = []

    def go() -> Ledger:
        made.append(Ledger(url))
        return made[-1]

    yield go
    for ledger in made:
        ledger.close()


@pytest.fixture
def ledger(opened: Callable[[], Ledger]) -> Ledger:
    return opened()
