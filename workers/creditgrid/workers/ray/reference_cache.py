"""The artifacts that lie in the object store for later calls, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any


class ReferenceCache:
    """References by artifact key; the least recently used goes first, and the object with its last reference."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def get(self, key: str) -> Any | None:
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def keep(self, key: str, reference: Any, size: int) -> None:
        """Keep a reference to ``size`` bytes; the newest stays whatever its size."""
        self._kept[key] = reference, size
        self._kept.move_to_end(key)
        total = sum(size for _, size in self._kept.values())
        while total > self._limit and len(self._kept) > 1:
            total -= self._kept.popitem(last=False)[1][1]

    def drop(self, keys: Iterable[str]) -> None:
        """Forget these, where they are kept: whoever needs them reads the artifact store."""
        for key in keys:
            self._kept.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
