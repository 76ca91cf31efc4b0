"""Fixtures that several test folders use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from creditgrid.core.science.data import ImageData

# Set before torch is imported: tests share few cores, and many threads on small tensors only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


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
