"""The plan: a grid's cells as measure tasks, and the shared tasks they depend on, each once.

Planning streams: a cell is named, looked up and yielded, so a plan of a million cells takes the memory of its keys and
distinct stages. A task that was computed before is ``done``; one that another open sweep computes is ``shared``; only
``new`` tasks are put into calls. A stage is needed only if a missing task depends on it: a grid whose rows all exist
runs nothing, even if its checkpoints are gone.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.errors import DatasetError, Fault, PluginError, SpecError
from creditgrid.core.experiment import Params
from creditgrid.core.spec.grid import Grid
from creditgrid.core.task import Task, TaskKind

LOOKUP_CHUNK = 1000
"""Keys are looked up this many at a time."""


class Known(enum.Enum):
    """What is known of a key before a sweep is planned."""

    DONE = "done"  # its artifact or rows exist
    SHARED = "shared"  # an open sweep is computing it
    FAILED = "failed"  # it finished without a result
    GONE = "gone"  # it was computed once, and its artifact no longer exists
    ABSENT = "absent"  # no sweep has requested it


class Fate(enum.StrEnum):
    """What a plan does with a task."""

    CACHED = "cached"
    SHARED = "shared"
    NEW = "new"
    UNNEEDED = "unneeded"  # missing, and no missing task depends on it


Lookup: TypeAlias = Callable[[Sequence[Task]], Mapping[str, Known]]


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """A task, its fate, and the call (numbered within the plan) that computes it if it is new."""

    task: Task
    fate: Fate
    known: Known
    call: int | None


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """A cell: its parameters and its measure task."""

    index: int
    params: Params
    planned: PlannedTask


@dataclass(slots=True)
class PlannedCall:
    """One call: the kind of its tasks, and the keys of the parents they wait for (those that are not done)."""

    number: int
    kind: str
    waits_for: set[str] = field(default_factory=set)
    size: int = 0


class Plan:
    """Iterate ``cells()`` to its end, then read ``stages()`` and ``calls``.

    Args:
        grid: the validated spec.
        kinds: every task kind by name.
        datasets: the datasets that the grid names, resolved.
        lookup: what is known of tasks; asked once for each distinct task.
    """

    def __init__(
        self, grid: Grid, kinds: Mapping[str, TaskKind], datasets: Mapping[str, DatasetRef], lookup: Lookup
    ) -> None:
        self._grid, self._kinds, self._datasets, self._lookup = grid, kinds, datasets, lookup
        self._ancestors: dict[str, Task] = {}
        self._known: dict[str, Known] = {}
        self._demanded: set[str] = set()  # direct parents of new cells
        self._open: dict[tuple[str, str], PlannedCall] = {}  # by kind and group: the call that has room for more tasks
        self.calls: list[PlannedCall] = []

    def cells(self, only: Container[int] | None = None, besides: Iterable[str] = ()) -> Iterator[PlannedCell]:
        """Every cell once, or those with an index in ``only``; without cells whose key is in ``besides``.

        Raises:
            SpecError: for cells whose values make no sense together.
            PluginError: when the experiment's own code raises.
        """
        seen = {bytes.fromhex(key) for key in besides}
        every = enumerate(self._grid.cells(self._datasets))
        numbered = (item for item in every if only is None or item[0] in only)
        while chunk := list(itertools.islice(numbered, LOOKUP_CHUNK)):
            named = [(index, params, *self._name(params)) for index, params in chunk]
            fresh = {a.key: a for _, _, _, ancestors in named for a in ancestors if a.key not in self._ancestors}
            self._ancestors.update(fresh)
            self._known.update(self._look_up(list(fresh.values())))
            known = self._look_up([task for _, _, task, _ in named])
            for index, params, task, _ in named:
                packed = bytes.fromhex(task.key)
                if packed in seen:  # two spellings of one cell have one key
                    continue
                seen.add(packed)
                yield PlannedCell(index, params, self._place(task, known[task.key]))

    def stages(self) -> list[PlannedTask]:
        """Every distinct task below the cells, parents before children.

        Raises:
            SpecError: when a missing task depends on an artifact that must be imported and does not exist.
        """
        needed: set[str] = set()
        for task in reversed(self._ancestors.values()):
            if self._known[task.key] is Known.DONE:
                continue
            if task.key in self._demanded or task.key in needed:
                needed.add(task.key)
                needed.update(task.parents.values())
        self._refuse_absent(needed)
        planned = []
        for task in self._ancestors.values():
            known = self._known[task.key]
            if known in (Known.DONE, Known.SHARED) or task.key in needed:
                planned.append(self._place(task, known))
            else:
                planned.append(PlannedTask(task, Fate.UNNEEDED, known, None))
        return planned

    def _name(self, params: Params) -> tuple[Task, Sequence[Task]]:
        dataset = self._datasets[params.__dict__["dataset"]] if self._datasets else None
        experiment = self._grid.experiment
        try:
            return experiment.cell(params, dataset)
        except Exception as error:
            raise PluginError(f"{experiment.name}: cell() raised {type(error).__name__}: {error}") from error

    def _refuse_absent(self, needed: Container[str]) -> None:
        """Raise SpecError for needed stages that nothing computes and that do not exist."""
        faults: dict[str, Fault] = {}
        for task in self._ancestors.values():
            missing = task.key in needed and self._known[task.key] is not Known.DONE
            if not missing or self._kinds[task.kind].run is not None:
                continue
            (name,) = task.params.values()  # of the artifact; a spec gives it in the parameter named after the kind
            detail = f"there is no {task.kind} {name}: import it first (creditgrid import-{task.kind} FILE)"
            fault = Fault(detail, self._grid.pointer_to(task.kind, name))
            faults.setdefault(fault.pointer, fault)
        if faults:
            raise SpecError(list(faults.values()))

    def _look_up(self, tasks: Sequence[Task]) -> dict[str, Known]:
        found = self._lookup(tasks) if tasks else {}
        return {task.key: found.get(task.key, Known.ABSENT) for task in tasks}

    def _place(self, task: Task, known: Known) -> PlannedTask:
        if known is Known.DONE:
            return PlannedTask(task, Fate.CACHED, known, None)
        if known is Known.SHARED:
            self._demanded.update(task.parents.values())  # one of them may have failed meanwhile
            return PlannedTask(task, Fate.SHARED, known, None)
        kind = self._kinds[task.kind]
        call = self._open.get((task.kind, task.group))
        if call is None or call.size >= kind.max_group:
            call = PlannedCall(len(self.calls), task.kind)
            self._open[task.kind, task.group] = call
            self.calls.append(call)
        call.size += 1
        for key in task.parents.values():
            if self._known.get(key) is not Known.DONE:
                call.waits_for.add(key)
            self._demanded.add(key)
        return PlannedTask(task, Fate.NEW, known, call.number)


def resolve_datasets(grid: Grid, resolve: Callable[[str], DatasetRef]) -> dict[str, DatasetRef]:
    """Every dataset that the grid names, each resolved once.

    Raises:
        SpecError: pointing at each name that is unknown, missing or corrupt.
    """
    parameter = grid.experiment.params.model_fields.get("dataset")
    if parameter is None:
        return {}
    names = [*grid.axes.get("dataset", ()), *(entry["dataset"] for entry in grid.include if "dataset" in entry)]
    if "dataset" in grid.fixed:
        names.append(grid.fixed["dataset"])
    elif "dataset" not in grid.axes and isinstance(parameter.default, str):
        names.append(parameter.default)
    found, faults = {}, []
    for name in dict.fromkeys(names):
        try:
            found[name] = resolve(name)
        except DatasetError as error:
            faults.append(Fault(str(error), grid.pointer_to("dataset", name)))
    if faults:
        raise SpecError(faults)
    return found
