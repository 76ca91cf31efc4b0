"""The inputs of a call: all of them, or a failure that names the missing ones; and a cache bounded in bytes."""

from __future__ import annotations

import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from creditgrid.core.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing
from creditgrid.workers.runner import Call, Failed

Loaded = TypeVar("Loaded")


class ArtifactCache(Generic[Loaded]):
    """Values by artifact key; the least recently used is dropped first. Not safe for threads."""

    def __init__(self, limit: int) -> None:
        self._limit, self._total = limit, 0
        self._values: OrderedDict[str, tuple[Loaded, int]] = OrderedDict()

    def get(self, key: str) -> Loaded | None:
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: str, value: Loaded, size: int) -> None:
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


def load_inputs(call: Call, load: Callable[[str], Loaded]) -> list[Loaded] | Failed:
    """``load`` of each of the call's inputs, in their order.

    ``Failed.missing`` names every input that the store does not hold complete: these must be made again. An input that
    merely cannot be read now (an ``OSError``) makes a transient failure.
    """
    loaded: list[Loaded] = []
    missing: dict[str, str] = {}
    for key in call.inputs:
        try:
            loaded.append(load(key))
        except (ArtifactMissing, ArtifactCorrupt) as error:
            missing[key] = str(error)
        except (OSError, ArtifactError) as error:
            return Failed(call.id, str(error), traceback.format_exc(), transient=True)
    if missing:
        return Failed(call.id, "; ".join(missing.values()), "", transient=False, missing=tuple(missing))
    return loaded
