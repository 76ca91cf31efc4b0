"""Fixtures that several test folders use, and how files are shared out to processes of pytest-xdist."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadFileScheduling

    from creditgrid.core.science.data import ImageData

# Set before torch is imported: tests share few cores, and many threads on small tensors only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray and CreditGrid end calls on a machine whose memory is nearly full, whatever fills it: only one test wants that.
os.environ |= {"RAY_memory_monitor_refresh_ms": "0"}

# Many tests start processes; without cached bytecode each of them would compile torch again, for ten seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

ROOT = Path(__file__).resolve().parent.parent
ONE_AFTER_THE_OTHER = (
    (
        "tests/workers/ray/test_faults.py",
        "tests/test_chaos.py",
        "tests/contracts/test_runner_contract.py",
        "tests/test_determinism.py",
    ),
    ("tests/test_end_to_end.py",),
)
"""Files that start Ray clusters, for one process each line: the first say how soon things happen."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Several processes start with the files that take longest, so that none of them is left over at the end."""
    if hasattr(config, "workerinput"):
        first = [name for line in ONE_AFTER_THE_OTHER for name in line]
        rank = {name: number for number, name in enumerate(first)}
        items.sort(key=lambda item: (rank.get(_file(item.nodeid), len(first)), item.get_closest_marker("slow") is None))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """A process takes whole files, and all files of a line above."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((line[0] for line in ONE_AFTER_THE_OTHER if _file(nodeid) in line), _file(nodeid))

    return Scheduling(config, log)


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


@pytest.fixture(scope="session")
def cifar_dir() -> Path:
    """CIFAR-10 as train.parquet and test.parquet of JPEG images; tests that want it are skipped where it is not."""
    directory = Path(os.environ.get("CREDITGRID_TEST_CIFAR10") or ROOT.parent / "shared/data/cifar10-jpeg").absolute()
    if not (directory / "train.parquet").is_file() or not (directory / "test.parquet").is_file():
        pytest.skip(f"skipped: no data in {directory} (CREDITGRID_TEST_CIFAR10 names another directory)")
    return directory


@pytest.fixture
def tiny_data() -> ImageData:
    """200 training and 60 test images, 3 x 8 x 8, of 5 classes that a network can learn to tell apart."""
    import torch

    from creditgrid.core.science.data import ImageData

    rng = np.random.default_rng(0)
    # A class is a colour, which survives augmentation, and a faint pattern, which hardly does.
    prototypes = 60 * rng.normal(size=(5, 3, 1, 1)) + 15 * rng.normal(size=(5, 3, 8, 8))
    labels = rng.integers(5, size=260)
    pixels = 128 + prototypes[labels] + 20 * rng.normal(size=(260, 3, 8, 8))
    images = torch.from_numpy(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    classes = torch.from_numpy(labels)
    scaled = images[:200].double() / 255
    mean, std = scaled.mean((0, 2, 3)).float(), scaled.std((0, 2, 3), correction=0).float()
    return ImageData(images[:200], classes[:200], images[200:], classes[200:], mean, std, num_classes=5)
