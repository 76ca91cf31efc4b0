"""A ledger in each database."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from creditgrid.service.ledger.ledger import Ledger


@pytest.fixture
def opened(url: str) -> Iterator[Callable[[], Ledger]]:
    """Opens the ledger, also several times at once."""
    made: list[Ledger] = []

    def open_ledger() -> Ledger:
        made.append(Ledger(url))
        return made[-1]

    yield open_ledger
    for ledger in made:
        ledger.close()


@pytest.fixture
def ledger(opened: Callable[[], Ledger]) -> Ledger:
    return opened()
