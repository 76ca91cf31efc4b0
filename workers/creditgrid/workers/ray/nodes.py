"""The nodes of a Ray cluster as its driver knows them, and whether something listens at an address."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from creditgrid.workers.runner import Capacity

TIMEOUT_S = 2.0


class Nodes:
    """The live nodes, from the last answer of ``ray.nodes()``. One thread refreshes, others read."""

    def __init__(self) -> None:
        self._alive: dict[str, Mapping[str, Any]] = {}
        self._lost = threading.Event()

    def refresh(self, described: Iterable[Mapping[str, Any]]) -> None:
        """Take an answer of ``ray.nodes()``."""
        alive = {node["NodeID"]: node for node in described if node["Alive"]}
        if self._alive.keys() - alive.keys():
            self._lost.set()
        self._alive = alive

    def lost(self) -> bool:
        """Whether a node was lost since the last call."""
        if not self._lost.is_set():
            return False
        self._lost.clear()
        return True

    def gone(self, node: str) -> bool:
        """Whether the node is gone. Its raylet is asked, because Ray notices the loss some seconds later."""
        alive = self._alive.get(node)
        return alive is None or bool(connection_error(f"{alive['NodeManagerAddress']}:{alive['NodeManagerPort']}"))

    def capacity(self) -> Capacity:
        """The resources of all nodes together."""
        return Capacity(sum(self._sizes("CPU")), sum(self._sizes("GPU")), len(self._alive))

    def largest(self, resource: str) -> float:
        """The largest amount of a resource on one node."""
        return max(self._sizes(resource), default=0.0)

    def _sizes(self, resource: str) -> list[float]:
        return [node["Resources"].get(resource, 0.0) for node in self._alive.values()]


def connection_error(address: str) -> str | None:
    """Why no connection to ``host:port`` can be made; None if one can, or if ``address`` has another form.

    It is asked before a call of Ray's that would block for minutes.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        return None
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        return str(error)
    return None
