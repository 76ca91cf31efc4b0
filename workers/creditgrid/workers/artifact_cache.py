"""Artifacts that are kept for later calls, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ArtifactCache(Generic[Value]):
    """Values by artifact key; the least recently used is dropped first. Not safe for threads."""

    def __init__(self, limit: int) -> None:
        self._limit, self._total = limit, 0
        self._values: OrderedDict[str, tuple[Value, int]] = OrderedDict()

    def get(self, key: str) -> Value | None:
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: str, value: Value, size: int) -> None:
        """Keep a value of ``size`` bytes; the newest stays whatever its size."""
        self.drop([key])
        self._values[key] = value, size
        self._total += size
        while self._total > self._limit and len(self._values) > 1:
            self.drop([next(iter(self._values))])

    def drop(self, keys: Iterable[str]) -> None:
        """Drop the values of these keys, if they are there."""
        for key in keys:
            _, size = self._values.pop(key, (None, 0))
            self._total -= size

    def clear(self) -> None:
        """Drop everything."""
        self._values.clear()
        self._total = 0
