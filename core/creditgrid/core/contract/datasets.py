"""Checks of datasets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from creditgrid.core.contract.checks import Checks
from creditgrid.core.contract.random_state import seeded, watched
from creditgrid.core.science.loading import Array, faults_of
from creditgrid.core.units.dataset import Dataset


class LoadedDataset:
    """A dataset, and its arrays."""

    group = "datasets"

    def __init__(self, written: type[Dataset], device: Any = None) -> None:  # noqa: ARG002 (arrays are on the CPU)
        self.written, self.name = written, written.name

    @cached_property
    def arrays(self) -> Mapping[str, Array]:
        return self.written().load()


CHECKS: Checks[LoadedDataset] = Checks()


@CHECKS.add(
    "the arrays are those declared",
    why="A plan relies on the declaration, and never loads them.",
    of="load",
    basic=True,
)
def arrays(subject: LoadedDataset) -> Iterator[str]:
    yield from faults_of(subject.written, subject.arrays)


@CHECKS.add("two loads give equal arrays", why="The fingerprint identifies the content.", of="load", quick=True)
def deterministic(subject: LoadedDataset) -> Iterator[str]:
    with seeded(1):
        first = subject.written().load()
    with seeded(2):
        again = subject.written().load()
    for name in first:
        if not np.array_equal(first[name], again[name]):
            yield f"two loads differ in {name}: draw from a generator with a fixed seed"


@CHECKS.add(
    "the global random state is left alone", why="Every random number has a stream of its own.", of="load", quick=True
)
def global_state(subject: LoadedDataset) -> Iterator[str]:
    changed: list[str] = []
    with watched(changed):
        subject.written().load()
    yield from (f"load() changes the global state of {library}" for library in changed)
