"""The nodes of a Ray cluster as its driver knows them: what they offer, and which are gone."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from creditgrid.workers.ray.endpoints import refusal
from creditgrid.workers.runner import Capacity


class Nodes:
    """The nodes alive, as ``ray.nodes()`` described them last. One thread refreshes, others read."""

    def __init__(self) -> None:
        self._alive: dict[str, Mapping[str, Any]] = {}
        self._lost = threading.Event()

    def refresh(self, described: Iterable[Mapping[str, Any]]) -> None:
        """Take what ``ray.nodes()`` answered."""
        alive = {node["NodeID"]: node for node in described if node["Alive"]}
        if self._alive.keys() - alive.keys():
            self._lost.set()
        self._alive = alive

    def lost(self) -> bool:
        """Whether a node went since this was asked last."""
        if not self._lost.is_set():
            return False
        self._lost.clear()
        return True

    def gone(self, node: str) -> bool:
        """Whether the node is not there; its raylet is asked, because Ray learns of its end some seconds later."""
        found = self._alive.get(node)
        return found is None or refusal(f"{found['NodeManagerAddress']}:{found['NodeManagerPort']}") is not None

    def capacity(self) -> Capacity:
        """What all nodes have together."""
        return Capacity(sum(self._sizes("CPU")), sum(self._sizes("GPU")), len(self._alive))

    def largest(self, resource: str) -> float:
        """The most of a resource that one node has."""
        return max(self._sizes(resource), default=0.0)

    def _sizes(self, resource: str) -> list[float]:
        return [node["Resources"].get(resource, 0.0) for node in self._alive.values()]
