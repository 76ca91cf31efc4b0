"""Fixtures of the contract suites."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

PLUGIN = Path(__file__).resolve().parent.parent / "plugin"


@pytest.fixture(scope="module", autouse=True)
def _plugin_in_child_processes() -> Iterator[None]:
    """Workers are processes of their own: they find the tests' experiments by the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH")])))
        yield


@pytest.fixture(autouse=True)
def _torch_restored() -> Iterator[None]:
    """The local runner's calls configure torch for the whole process; the other tests need it unchanged."""
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    yield
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(mode)
