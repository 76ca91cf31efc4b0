"""Tasks: units of execution, each with a key.

A *kind* says how tasks are computed; a *task* says what. Tasks with the same group share inputs and shapes and are
computed together by one call of their kind's ``run``; each still has a key, an artifact or rows, and a state of its
own. ``run`` is a plain generator function that knows nothing of caching, retries or machines::

    def run(tasks, inputs, device):
        for task in tasks:
            yield Progress(done, total, "epoch 3 of 100")
            yield Output(task.key, arrays={"embed.weight": ...})      # an artifact, or
            yield Output(task.key, rows=[{"delta_loss_same": ...}])   # rows of the results table

A long run may also yield ``Saved``: another attempt at the group then finds those arrays as ``inputs[group]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from creditgrid.core.fingerprint import digest

if TYPE_CHECKING:
    import numpy as np
    import torch

Arrays: TypeAlias = "Mapping[str, np.ndarray[Any, Any]]"
Inputs: TypeAlias = "Mapping[str, Arrays]"
"""Artifacts of the parents by key, and by the group's key what an interrupted attempt saved; maybe read-only views."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a call has come: ``done`` of ``total`` steps, in words for a person."""

    done: int
    total: int
    note: str


@dataclass(frozen=True, slots=True)
class Output:
    """What one task made: tensors to keep as its artifact, or rows of the results table; ``info`` joins the tensors."""

    key: str
    arrays: Arrays | None = None
    rows: Sequence[Mapping[str, Any]] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Saved:
    """Where a long run stands, for another attempt to go on from; ``state`` copies it, when it is time to keep it."""

    state: Callable[[], Arrays]


@dataclass(frozen=True, slots=True)
class Resources:
    """What one call asks of the cluster. GPUs may be fractions; without a GPU in the cluster they are ignored."""

    cpu: float = 1.0
    gpu: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One unit of execution.

    ``params`` and the parents' keys are its identity. ``group`` names the tasks that one call may compute together;
    ``source`` says where a worker finds foreign data and is no part of the identity.
    """

    kind: str
    version: int
    params: Mapping[str, Any]
    parents: Mapping[str, str]
    key: str
    group: str
    source: Mapping[str, str] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)

    def payload(self) -> dict[str, Any]:
        """The hashed payload: what ``key`` is the SHA-256 of."""
        return identity(self.kind, self.version, self.params, self.parents)


Run: TypeAlias = "Callable[[Sequence[Task], Inputs, torch.device], Iterator[Progress | Output | Saved]]"


def identity(kind: str, version: int, params: Mapping[str, Any], parents: Mapping[str, str]) -> dict[str, Any]:
    """The payload that a key is made of."""
    return {"kind": kind, "version": version, "params": dict(params), "parents": dict(parents)}


@lru_cache(4096)  # a grid has few groups and many tasks
def _group(kind: str, version: int, group: tuple[str | int, ...]) -> str:
    return digest([kind, version, *group])


@dataclass(frozen=True)
class TaskKind:
    """How tasks of one kind are computed.

    ``version`` goes up when equal parameters begin to mean another result. ``max_group`` bounds the tasks in one call.
    A kind without a ``run`` is never computed: its artifacts are brought in from outside. A call that takes longer than
    ``timeout_s`` seconds is stopped and tried again, as after a lost worker; a spec's ``timeout_s`` comes before it.
    """

    name: str
    version: int
    run: Run | None
    resources: Resources = field(default_factory=Resources)
    max_group: int = 1
    timeout_s: float | None = None

    def task(
        self,
        params: Mapping[str, Any],
        parents: Mapping[str, Task] | None = None,
        *,
        group: tuple[str | int, ...] | None = None,
        source: Mapping[str, str] | None = None,
    ) -> Task:
        """The task of this kind with these parameters; tasks with an equal ``group`` may share a call, no others."""
        keys = {role: parent.key for role, parent in (parents or {}).items()}
        key = digest(identity(self.name, self.version, params, keys))
        return Task(
            self.name,
            self.version,
            params,
            keys,
            key,
            key if group is None else _group(self.name, self.version, group),
            source or {},
        )
