"""A house with a scheduler that a test steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sweeping import House, quick


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    with quick(monkeypatch):
        made = House(tmp_path)
        yield made
        made.check()
        made.close()
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(mode)
