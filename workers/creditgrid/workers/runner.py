"""The one seam to the machines: a runner takes calls and tells what becomes of them.

The scheduler sees this Protocol alone. ``ray_runner`` implements it over a Ray cluster and ``local_runner`` in this
process; one contract suite holds both to the same behaviour. Calls and messages are plain data, because between the
service and the Ray driver they cross a pipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from creditgrid.core.task import Resources, Task


@dataclass(frozen=True, slots=True)
class Call:
    """What one process computes in one go: tasks of one kind and group. ``inputs`` are the artifacts it reads."""

    id: int
    kind: str
    tasks: Sequence[Task]
    inputs: Sequence[str]
    resources: Resources
    attempt: int = 1
    stamp: Mapping[str, Any] = field(default_factory=dict)  # what every row says of its origin, such as the sweep


@dataclass(frozen=True, slots=True)
class Started:
    """A process began the call."""

    call: int
    host: str
    device: str


@dataclass(frozen=True, slots=True)
class Advanced:
    """How far the call has come."""

    call: int
    done: int
    total: int
    note: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The call is through and its artifacts are in the store; ``rows`` is an Arrow IPC stream of all its rows.

    ``diverged`` are the keys of tasks with a number that is not finite; ``sizes`` gives bytes of artifacts by key.
    """

    call: int
    seconds: float
    host: str
    device: str
    rows: bytes | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    diverged: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """The call ended without a result. ``transient``: the machine is to blame (a lost worker, memory, I/O), try again.

    ``stored`` are keys whose artifacts were saved before the failure. ``crashed``: its process died of it, or was made
    to. ``missing`` are inputs that the store does not hold whole any more: they must be made again first.
    """

    call: int
    error: str
    traceback: str
    transient: bool
    host: str | None = None
    stored: Sequence[str] = ()
    crashed: bool = False
    missing: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Lost:
    """Everything in flight is gone with the driver or the cluster; the runner is being started again."""

    reason: str


Message: TypeAlias = Started | Advanced | Finished | Failed | Lost


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the runner can use, and what is wrong with it, if anything."""

    cpu: float
    gpu: float
    nodes: int
    degraded: str | None = None


class Runner(Protocol):
    """Runs calls, several at a time, in no promised order. One thread uses it."""

    def start(self) -> None:
        """Begin; may go on starting in the background.

        Raises:
            RunnerError: when it cannot be started at all.
        """

    def capacity(self) -> Capacity:
        """What there is now."""

    def submit(self, call: Call) -> None:
        """Take a call; its end comes back as one Finished or Failed, or all at once as Lost.

        A Lost is of everything that was submitted before the poll that tells it.
        """

    def poll(self, timeout: float) -> list[Message]:
        """Messages since the last poll, waiting up to ``timeout`` seconds for the first."""

    def cancel(self, call: int) -> None:
        """Stop a call; it ends as Failed (or Finished, if it was faster). Unknown calls are ignored."""

    def stop(self) -> None:
        """End everything in flight and release what was started."""
