"""A runner under test: submits calls and collects its messages."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from creditgrid.core.task import Resources, Task
from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.runner import Call, Failed, Finished, Message, Runner, Started

START_S = 180.0
SOON_S = 120.0
"""For everything that takes well under a second on an idle machine; CI's cores are busy."""


class Kit:
    """A runner over a store, and its messages."""

    def __init__(self, name: str, runner: Runner, store: ArtifactStore) -> None:
        self.name, self.runner, self.store = name, runner, store
        self._ids = itertools.count(1)
        self.seen: list[Message] = []

    def submit(
        self, tasks: Sequence[Task], inputs: Sequence[str] = (), resources: Resources | None = None, log: str = ""
    ) -> int:
        given = resources or Resources(cpu=1)
        call = Call(next(self._ids), tasks[0].kind, tasks, inputs, given, 2, {"sweep": "s1"}, log)
        self.runner.submit(call)
        return call.id

    def until(self, enough: Callable[[list[Message]], bool], within: float = SOON_S) -> list[Message]:
        """Poll until the messages of this test are enough, and return them."""
        deadline = time.monotonic() + within
        while not enough(self.seen):
            assert time.monotonic() < deadline, f"not within {within} s; came: {self.seen}"
            self.seen += self.runner.poll(0.2)
        return self.seen

    def end_of(self, call: int, within: float = SOON_S) -> Finished | Failed:
        """How the call ended; all its messages are in ``seen``."""
        self.until(lambda seen: any(self._ends(item, call) for item in seen), within)
        (end,) = (item for item in self.seen if self._ends(item, call))
        assert isinstance(end, Finished | Failed)
        return end

    def failure_of(self, call: int, within: float = SOON_S) -> Failed:
        end = self.end_of(call, within)
        assert isinstance(end, Failed), end
        return end

    def of(self, call: int, kind: type[Any]) -> list[Any]:
        return [item for item in self.seen if isinstance(item, kind) and item.call == call]

    def running(self, *calls: int) -> None:
        self.until(lambda seen: all(self.of(call, Started) for call in calls))

    def ready(self, within: float = START_S) -> float:
        """Wait until the runner is no longer degraded; returns the seconds that this took."""
        started_at = time.monotonic()
        while self.runner.capacity().degraded is not None:
            assert time.monotonic() < started_at + within, self.runner.capacity()
            time.sleep(0.1)
        return time.monotonic() - started_at

    def _ends(self, item: Message, call: int) -> bool:
        return isinstance(item, Finished | Failed) and item.call == call


def drivers() -> list[psutil.Process]:
    """The Ray drivers that this process supervises."""
    return [child for child in psutil.Process().children() if "creditgrid.workers.ray.driver" in child.cmdline()]
