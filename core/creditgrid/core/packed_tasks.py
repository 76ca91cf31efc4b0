"""Tasks as text: as the ledger keeps them, and packed for the way to a worker.

Tasks of one call differ in their parameters and share most of the rest. So the text of a task has two parts:
``params``, and ``shared``: version, parents and their versions, group and source. The service passes the texts of a
call to the worker without decoding its parameters, and the worker decodes each distinct shared part once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, overload

from creditgrid.core.task import Task


def params_text(task: Task) -> str:
    """The task's parameters as JSON."""
    return json.dumps(task.params) if task.params_text is None else task.params_text


def shared_text(task: Task) -> str:
    """The rest of the task as JSON, without its kind and key."""
    versions = None if task.parent_versions is None else tuple(task.parent_versions.items())
    return _shared_text(task.version, tuple(task.parents.items()), versions, task.group, tuple(task.source.items()))


@lru_cache(1024)  # the cells of a grid come group by group
def _shared_text(
    version: int,
    parents: tuple[tuple[str, str], ...],
    versions: tuple[tuple[str, int], ...] | None,
    group: str,
    source: tuple[tuple[str, str], ...],
) -> str:
    shared = {"version": version, "parents": dict(parents), "group": group, "source": dict(source)}
    return json.dumps(shared if versions is None else {**shared, "parent_versions": dict(versions)})


def parents_in(shared: str) -> Mapping[str, str]:
    """The keys of the parents by role, from a shared text."""
    found: Mapping[str, str] = json.loads(shared)["parents"]
    return found


def task_of(kind: str, key: str, params: str, shared: str) -> Task:
    """The task with these texts."""
    return Task(kind=kind, key=key, params=json.loads(params), **json.loads(shared))


@dataclass(frozen=True, slots=True)
class PackedTasks(Sequence[Task]):
    """Tasks of one kind. It is cheap to pickle and to count, and decodes all its tasks when it is iterated."""

    kind: str
    keys: tuple[str, ...]
    params: str
    """A JSON list of the parameters of each task."""
    shared: tuple[str, ...]
    """The distinct shared texts."""
    which: tuple[int, ...]
    """The index in ``shared`` for each task."""

    @classmethod
    def pack(cls, kind: str, texts: Iterable[tuple[str, str, str]]) -> PackedTasks:
        """Pack tasks of one kind from their keys, parameters and shared texts."""
        numbers: dict[str, int] = {}
        keys, params, which = [], [], []
        for key, own, shared in texts:
            keys.append(key)
            params.append(own)
            which.append(numbers.setdefault(shared, len(numbers)))
        return cls(kind, tuple(keys), f"[{','.join(params)}]", tuple(numbers), tuple(which))

    def parents(self) -> set[str]:
        """The keys of all parents."""
        return {key for shared in self.shared for key in parents_in(shared).values()}

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Task]:
        shared = [json.loads(text) for text in self.shared]
        for key, params, which in zip(self.keys, json.loads(self.params), self.which, strict=True):
            rest = shared[which]
            yield Task(kind=self.kind, key=key, params=params, **rest)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Task]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return list(self)[index]
