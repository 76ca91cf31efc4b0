"""Fixtures of the workers' tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from creditgrid.workers.artifacts import ArtifactStore

settings.register_profile("creditgrid", deadline=None, max_examples=60)
settings.load_profile("creditgrid")


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


@pytest.fixture(autouse=True)
def _torch_restored() -> Iterator[None]:
    """A worker configures torch for its whole process; the other tests of this process need it unchanged."""
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    yield
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(mode)
