"""Tasks: units of execution, each with a key.

A *kind* says how tasks are computed; a *task* says what. Tasks of one group share inputs and shapes, and one call of
their kind's ``run`` computes them together. Each still has its own key, artifact or rows, and state. ``run`` is a plain
generator function that knows nothing of caching, retries or machines::

    def run(tasks, inputs, device):
        for task in tasks:
            yield Progress(3, 100, "epoch 3 of 100", {"loss": 0.4})
            yield Output(task.key, arrays={"embed.weight": ...})      # an artifact, or
            yield Output(task.key, rows=[{"delta_loss_same": ...}])   # rows of the results table

A long run may also yield ``Saved``: the next attempt at the group then finds those arrays as ``inputs[group]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from creditgrid.core.errors import TaskError
from creditgrid.core.fingerprint import Keys, digest

if TYPE_CHECKING:
    import numpy as np
    import torch

    from creditgrid.core.work import CostModel

Arrays: TypeAlias = "Mapping[str, np.ndarray[Any, Any]]"
Inputs: TypeAlias = "Mapping[str, Arrays]"
"""Artifacts of the parents by key, and by the group's key the saved state of an earlier attempt; may be read-only."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a call is: ``done`` of ``total`` steps, and a ``note`` for a person.

    With ``metrics`` it is also a point of the curve of the call's run, at the epoch (or step) ``done``, which must
    increase. A metric is a number under a name that is an identifier. Yield the point of an epoch before the Output of
    that epoch: the record of an artifact holds the curve up to it.
    """

    done: int
    total: int
    note: str
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Output:
    """The output of one task: tensors for its artifact, with ``info`` about them, or rows of the results table."""

    key: str
    arrays: Arrays | None = None
    rows: Sequence[Mapping[str, Any]] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Saved:
    """The state from which another attempt can continue a long run; ``state()`` copies it, when it is to be kept."""

    state: Callable[[], Arrays]


@dataclass(frozen=True, slots=True)
class Resources:
    """What one call needs of the cluster. GPUs may be fractions; a cluster without GPUs ignores them."""

    cpu: float = 1.0
    gpu: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One unit of execution.

    ``params`` and the parents' keys are its identity. ``group`` names the tasks that one call may compute together.
    Not part of the identity: ``source`` names the dataset or where to load it from. ``parent_versions`` are the
    versions of the parents by role; None for a task that was planned before they were recorded. ``params_text`` is
    the parameters' JSON, if it was made already.
    """

    kind: str
    version: int
    params: Mapping[str, Any]
    parents: Mapping[str, str]
    key: str
    group: str
    source: Mapping[str, str] = field(default_factory=dict)
    parent_versions: Mapping[str, int] | None = None
    params_text: str | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)

    def payload(self) -> dict[str, Any]:
        """The hashed payload: ``key`` is its SHA-256."""
        return identity(self.kind, self.version, self.params, self.parents)


Run: TypeAlias = "Callable[[Sequence[Task], Inputs, torch.device], Iterator[Progress | Output | Saved]]"


def identity(kind: str, version: int, params: Mapping[str, Any], parents: Mapping[str, str]) -> dict[str, Any]:
    """The payload that a key is the hash of."""
    return {"kind": kind, "version": version, "params": dict(params), "parents": dict(parents)}


@lru_cache(4096)  # a grid has few groups and many tasks
def _group(kind: str, version: int, group: tuple[str | int, ...]) -> str:
    return digest([kind, version, *group])


@dataclass(frozen=True)
class TaskKind:
    """How tasks of one kind are computed.

    Raise ``version`` when equal parameters give another result than before. Where the parameters name a unit that has a
    version of its own, ``version_by`` gives the version of a task from its parameters.
    ``max_group`` bounds the tasks in one call.
    A kind without a ``run`` is never computed: its artifacts are imported. A call that takes longer than ``timeout_s``
    seconds is stopped and retried, as after a lost worker; a spec's ``timeout_s`` takes precedence.
    """

    name: str
    version: int
    run: Run | None
    resources: Resources = field(default_factory=Resources)
    max_group: int = 1
    timeout_s: float | None = None
    cost: CostModel | None = None
    cost_by: Sequence[str] | None = None
    version_by: Callable[[Mapping[str, Any]], int] | None = None
    _keys: Keys = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_keys", Keys(self.name))

    def version_of(self, params: Mapping[str, Any]) -> int:
        """The version of a task with these parameters."""
        return self.version if self.version_by is None else self.version_by(params)

    def check_version(self, task: Task) -> None:
        """Check that this installation computes what the task's key stands for.

        Raises:
            TaskError: the task has another version than its kind has here.
        """
        here = self.version_of(task.params)
        if task.version == here:
            return
        advice = "install what the service has"
        if task.version < here:
            advice = f"submit or retry the sweep, which computes version {here} and reuses what has not changed"
        raise TaskError(
            f"{task.kind} {task.key[:12]} is a task of version {task.version}, and this installation computes version "
            f"{here}, which gives another result: {advice}"
        )

    def task(
        self,
        params: Mapping[str, Any],
        parents: Mapping[str, Task] | None = None,
        *,
        group: tuple[str | int, ...] | None = None,
        source: Mapping[str, str] | None = None,
    ) -> Task:
        """The task of this kind with these parameters. Only tasks with an equal ``group`` may share a call."""
        parents = parents or {}
        keys = {role: parent.key for role, parent in parents.items()}
        version = self.version_of(params)
        key, text = self._keys.key(version, params, keys)
        return Task(
            self.name,
            version,
            params,
            keys,
            key,
            key if group is None else _group(self.name, version, group),
            source or {},
            {role: parent.version for role, parent in parents.items()},
            text,
        )
