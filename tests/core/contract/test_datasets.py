"""The contract of datasets, and of measurements."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from creditgrid.core.contract.datasets import CHECKS
from creditgrid.core.contract.suite import check_unit
from creditgrid.core.units.dataset import Dataset
from creditgrid.core.units.decorators import dataset

small = dataset(fingerprint="noise 1", image_shape=(1, 4, 4), num_train=6, num_test=3, num_classes=3)


def arrays(seed: int | None = 0) -> dict[str, Any]:
    draws = np.random.default_rng(seed)
    return {
        "x_train": draws.integers(256, size=(6, 1, 4, 4), dtype=np.uint8),
        "y_train": np.arange(6) % 3,
        "x_test": draws.integers(256, size=(3, 1, 4, 4), dtype=np.uint8),
        "y_test": np.arange(3),
    }


@small
def noise() -> Mapping[str, np.ndarray]:
    """Noise."""
    return arrays()


@small
def unseeded() -> Mapping[str, np.ndarray]:
    """Other noise each time."""
    return arrays(None)


@small
def touching() -> Mapping[str, np.ndarray]:
    """Draws from the global state."""
    np.random.rand()
    return arrays()


def changed(**other: Any) -> type[Dataset]:
    @small
    def odd() -> Mapping[str, np.ndarray]:
        """Odd."""
        return {name: array for name, array in {**arrays(), **other}.items() if array is not None}

    return odd


BROKEN: list[tuple[type[Dataset] | Callable[[], type[Dataset]], str, str]] = [
    (changed(x_test=None), "the arrays are those declared", "must give x_train, y_train, x_test, y_test"),
    (changed(x_test=[1]), "the arrays are those declared", "x_test is a list"),
    (changed(x_test=arrays()["x_train"]), "the arrays are those declared", r"uint8 \(6, 1, 4, 4\), and by the decl"),
    (changed(y_test=np.arange(3.0)), "the arrays are those declared", "y_test is float64"),
    (changed(y_test=np.arange(3) + 1), "the arrays are those declared", "y_test go from 1 to 3"),
    (unseeded, "two loads give equal arrays", "differ in x_train"),
    (touching, "the global random state is left alone", "numpy.random"),
]


def test_a_sound_dataset_passes() -> None:
    assert [finding for result in check_unit(noise, quick=False) for finding in result.findings] == []


@pytest.mark.parametrize(("unit", "check", "problem"), BROKEN)
def test_a_broken_dataset_fails_its_check(unit: type[Dataset], check: str, problem: str) -> None:
    findings = [f for result in check_unit(unit, quick=False) for f in result.findings if f.check == check]
    assert any(re.search(problem, finding.problem) for finding in findings), findings
    assert findings[0].file == __file__


def test_every_check_of_datasets_can_fail() -> None:
    assert {check.name for check in CHECKS} == {check for _, check, _ in BROKEN}
