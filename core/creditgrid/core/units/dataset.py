"""A dataset: a function that gives arrays, and a fingerprint of what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from creditgrid.core.units.unit import Unit

if TYPE_CHECKING:
    import numpy as np


class Dataset(Unit):
    """Base of datasets. A dataset has no parameters."""

    fingerprint: ClassVar[str]
    """Identifies the content, and never the place: change it when the arrays change. Up to 200 characters."""
    image_shape: ClassVar[tuple[int, int, int]]
    """Channels, height and width."""
    num_train: ClassVar[int]
    num_test: ClassVar[int]
    num_classes: ClassVar[int]

    def load(self) -> Mapping[str, np.ndarray]:
        """``x_train``, ``x_test`` uint8 (N, C, H, W), and ``y_train``, ``y_test`` int64 (N,) from 0. It runs in a
        worker, once; planning calls it never."""
        raise NotImplementedError
