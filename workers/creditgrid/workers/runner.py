"""The one seam to the machines: a runner takes calls, and reports how they run and end.

The scheduler sees this Protocol alone. ``ray.runner`` implements it over a Ray cluster and ``local_runner`` in this
process; one contract suite holds both to the same behaviour. Calls and messages are plain data, because they cross a
pipe between the service and the Ray driver.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeAlias

from creditgrid.core.task import Resources, Task


@dataclass(frozen=True, slots=True)
class Call:
    """Tasks of one kind and group, which one process computes together. ``inputs`` are the artifacts that it reads.

    ``stamp`` holds columns that every row of the call gets, such as the sweep. ``log`` names the log of the call
    (``call_log``); without a name, what it prints is not kept.
    """

    id: int
    kind: str
    tasks: Sequence[Task]
    inputs: Sequence[str]
    resources: Resources
    attempt: int = 1
    stamp: Mapping[str, Any] = field(default_factory=dict)
    log: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """A process started the call."""

    call: int
    host: str
    device: str


@dataclass(frozen=True, slots=True)
class Point:
    """What a run measured at one epoch, ``at`` a time (Unix seconds), and by which attempt; None: it is not finite."""

    epoch: int
    metrics: Mapping[str, float | None]
    at: float
    attempt: int
    host: str
    device: str


@dataclass(frozen=True, slots=True)
class Advanced:
    """Progress of the call: ``done`` of ``total`` steps, with ``points`` of its curve that no earlier message had.

    The points of one attempt come in the order of their epochs, and start with the first of the run.
    """

    call: int
    done: int
    total: int
    note: str
    points: Sequence[Point] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The call has finished and its artifacts are in the store; ``rows`` is an Arrow IPC stream of all its rows.

    ``diverged`` are the keys of tasks with a number that is not finite; ``sizes`` gives bytes of artifacts by key.
    """

    call: int
    seconds: float
    host: str
    device: str
    rows: bytes | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    diverged: Sequence[str] = ()
    points: Sequence[Point] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """The call ended without a result. ``transient``: the machine caused it (a lost worker, memory, I/O), so retry.

    ``stored`` are the keys of artifacts that were saved before the failure. ``crashed``: the call's process died, or
    was killed. ``missing`` are inputs that the store no longer holds complete: they must be made again first.
    """

    call: int
    error: str
    traceback: str
    transient: bool
    host: str | None = None
    stored: Sequence[str] = ()
    crashed: bool = False
    missing: Sequence[str] = ()
    points: Sequence[Point] = ()


@dataclass(frozen=True, slots=True)
class Lost:
    """Everything in flight was lost with the driver or the cluster; the runner restarts."""

    reason: str


Message: TypeAlias = Started | Advanced | Finished | Failed | Lost


def drain(messages: SimpleQueue[Message], timeout: float) -> list[Message]:
    """All messages in the queue, waiting up to ``timeout`` seconds for the first."""
    found: list[Message] = []
    with contextlib.suppress(Empty):
        found.append(messages.get(timeout=timeout))
        while True:
            found.append(messages.get_nowait())
    return found


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the runner can use; ``degraded`` says what is wrong with it, if anything."""

    cpu: float
    gpu: float
    nodes: int
    degraded: str | None = None


class Runner(Protocol):
    """Runs calls, several at a time, in no guaranteed order. One thread uses it."""

    def start(self) -> None:
        """Start; this may continue in the background."""

    def capacity(self) -> Capacity:
        """The capacity now."""

    def submit(self, call: Call) -> None:
        """Take a call. Its end is reported as one Finished or Failed, or with all others as Lost.

        A Lost covers everything that was submitted before the poll that returns it.
        """

    def poll(self, timeout: float) -> list[Message]:
        """Messages since the last poll, waiting up to ``timeout`` seconds for the first."""

    def cancel(self, call: int) -> None:
        """Stop a call: it ends as Failed, or as Finished if that came first. Unknown calls are ignored."""

    def stop(self) -> None:
        """End everything in flight and release what was started."""
