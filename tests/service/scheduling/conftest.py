"""Fixtures of the scheduler's tests: no test waits for its pauses, and the runner of a house does what a test says."""

from __future__ import annotations

from typing import Any

import pytest
from sweeping import House, ScriptedRunner


@pytest.fixture(autouse=True)
def _no_pauses(no_pauses: None) -> None:
    """All tests of this folder run without the scheduler's pauses."""


@pytest.fixture
def calls(house: House) -> dict[int, Any]:
    """The calls that the runner has."""
    assert isinstance(house.runner, ScriptedRunner)
    return house.runner.calls
