"""A dataset: a function that gives arrays, and a fingerprint of what it gives."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from creditgrid.core.datasets import MAX_CLASSES, PUBLIC_SETS, DatasetRef
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


def unfit_dataset(unit: type[Dataset]) -> str | None:
    """Why the declaration of a dataset cannot be used; None if it can."""
    if unit.name in PUBLIC_SETS:
        return f"the dataset {unit.name!r} exists already: choose another name"
    fingerprint, shape = getattr(unit, "fingerprint", None), getattr(unit, "image_shape", None)
    if not isinstance(fingerprint, str) or not 1 <= len(fingerprint) <= 200:
        return f"the dataset {unit.name} needs a fingerprint of 1 to 200 characters, which identifies its content"
    if not isinstance(shape, tuple) or len(shape) != 3 or not all(type(side) is int and side > 0 for side in shape):
        return f"the dataset {unit.name} needs an image_shape (channels, height, width)"
    for name, least, most in (("num_train", 1, 2**40), ("num_test", 1, 2**40), ("num_classes", 2, MAX_CLASSES)):
        value = getattr(unit, name, None)
        if type(value) is not int or not least <= value <= most:
            return f"the dataset {unit.name} needs {name}, a whole number of at least {least}"
    return None


def reference(unit: type[Dataset], code: str | None) -> DatasetRef:
    """A dataset as a plan knows it; ``code`` is the SHA-256 of the code that brings it, if a sweep does."""
    identity = f"creditgrid dataset\0{unit.name}\0{unit.version}\0{unit.fingerprint}"
    return DatasetRef(
        unit.name,
        hashlib.sha256(identity.encode()).hexdigest(),
        unit.num_train,
        unit.num_test,
        unit.num_classes,
        unit.image_shape,
        {"package": "unit", "name": unit.name},
        code,
    )
