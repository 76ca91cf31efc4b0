"""The plan: what happens to each named task.

A task that was computed before is ``done``; one that another open sweep computes is ``shared``; only ``new`` tasks are
put into calls. A stage is needed only if a missing task depends on it: a grid whose rows all exist runs nothing, even
if its checkpoints are gone. Plans are made chunk by chunk, so their memory grows with the distinct stages.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from creditgrid.core.errors import Fault, SpecError
from creditgrid.core.naming import CHUNK, Chunk, NamedTask
from creditgrid.core.spec.faults import MAX_FAULTS, bounded
from creditgrid.core.task import TaskKind
from creditgrid.core.work import NO_WORK, Cost, Work


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


class Found(NamedTuple):
    """What is known of a task, and the call of the ledger that computes it if it is shared."""

    known: Known
    call: int | None = None


Lookup: TypeAlias = Callable[[Sequence[NamedTask]], Mapping[str, Found]]
"""What is known of tasks, by key; a task that is left out is absent."""
_ABSENT = Found(Known.ABSENT)


@dataclass(slots=True, eq=False)
class PlannedCall:
    """A call of the plan: the kind and number of its tasks, and the keys of the parents that it waits for.

    ``level`` is the longest way from its tasks to a task without parents. ``id`` and ``written`` are for the writer:
    the ledger's number, and how many of the keys it has written. ``counted`` is for a dry run: the work that it shows.
    """

    kind: str
    size: int = 0
    waits_for: dict[str, None] = field(default_factory=dict)
    parents: set[tuple[int, ...]] = field(default_factory=set)  # those of its tasks, each set of parents once
    level: int = 0
    costs: dict[int, list[Any]] = field(default_factory=dict)  # by id: a cost, and how many tasks have it; few differ
    id: int | None = None
    written: int = 0
    counted: tuple[Work | None] | None = None

    def add(self, cost: Cost | None) -> None:
        """One more task with this cost."""
        self.size += 1
        known = self.costs.get(id(cost))
        if known is None:
            self.costs[id(cost)] = [cost, 1]
        else:
            known[1] += 1

    def work(self) -> Work | None:
        """The work of all its tasks, with what they share once; None if that of one is unknown."""
        own, shared = NO_WORK, dict[str, Work]()
        for cost, n in self.costs.values():
            if cost is None:
                return None
            own = own.plus(cost.own if n == 1 else cost.own.times(n))
            for name, part in cost.shared:
                shared[name] = part if name not in shared else part.largest(shared[name])
        for part in shared.values():
            own = own.plus(part)
        return own


class Planned(NamedTuple):
    """A task, its fate, and the call that computes it: of this plan if it is new, of the ledger if it is shared."""

    task: NamedTask
    fate: Fate
    known: Known
    call: PlannedCall | int | None


@dataclass(frozen=True, slots=True)
class Step:
    """What one chunk adds to a plan: cells with their indices, stages, and the calls with more tasks than before."""

    cells: Sequence[tuple[int, Planned]]
    stages: Sequence[Planned]
    calls: Sequence[PlannedCall]


class Plan:
    """Pass each chunk to ``add``, then each part of ``left`` to ``add_left``.

    Args:
        kinds: every task kind by name.
    """

    def __init__(self, kinds: Mapping[str, TaskKind]) -> None:
        self._room = {name: kind.max_group for name, kind in kinds.items()}
        self._stages: list[NamedTask | None] = []  # None once it is placed
        self._keys: list[str] = []
        self._above: list[Sequence[int]] = []  # the parents of each stage
        self._levels: list[int] = []  # the level of each stage
        self._known: dict[int, Known] = {}
        self._open: dict[tuple[str, str], PlannedCall] = {}  # by kind and group: the call that has room for more tasks
        self._faults: dict[str, Fault] = {}
        self.calls = Counter[str]()
        """Calls by kind."""

    @property
    def refused(self) -> bool:
        """Whether ``left`` will raise, so that nothing more needs to be written."""
        return bool(self._faults)

    def add(self, chunk: Chunk, lookup: Lookup) -> Step:
        """Place the chunk's cells, and the stages that they need and no earlier cell has needed.

        Raises:
            SpecError: as ``left``, once there are many faults.
        """
        for stage in chunk.stages:
            self._stages.append(stage)
            self._keys.append(stage.key)
            self._above.append(stage.parents)
            self._levels.append(self._level(stage.parents))
        found = lookup([cell.task for cell in chunk.cells])
        grown: dict[PlannedCall, None] = {}
        cells, demanded = [], set[tuple[int, ...]]()
        for index, task in chunk.cells:
            planned = self._place(task, found.get(task.key, _ABSENT), grown)
            cells.append((index, planned))
            if planned.fate is not Fate.CACHED:  # of a shared task, one of the parents may have failed meanwhile
                demanded.add(tuple(task.parents))
        stages = self._need({number for parents in demanded for number in parents}, lookup, grown)
        for call in grown:
            for parents in call.parents:
                waits = {self._keys[n]: None for n in parents if self._known[n] is not Known.DONE}
                call.waits_for.update(waits)
            call.parents.clear()
        return Step(cells, stages, list(grown))

    def left(self) -> list[Sequence[int]]:
        """After the last chunk: the stages that no missing task needs, in parts for ``add_left``.

        Raises:
            SpecError: a missing task depends on an artifact that must be imported and does not exist.
        """
        if self._faults:
            raise SpecError(bounded(list(self._faults.values())))
        numbers = [number for number, stage in enumerate(self._stages) if stage is not None]
        return [numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK)]

    def add_left(self, numbers: Sequence[int], lookup: Lookup) -> Step:
        """Place some of the stages that no missing task needs."""
        found = self._look_up(numbers, lookup)
        stages = []
        for number in numbers:
            stage = self._take(number)
            what = found.get(stage.key, _ABSENT)
            if what.known in (Known.DONE, Known.SHARED):
                stages.append(self._place(stage, what, {}))
            else:
                stages.append(Planned(stage, Fate.UNNEEDED, what.known, None))
        return Step([], stages, [])

    def _need(self, numbers: Iterable[int], lookup: Lookup, grown: dict[PlannedCall, None]) -> list[Planned]:
        """Place these stages and what they need, if they are not placed yet."""
        placed: list[Planned] = []
        wave = sorted(number for number in numbers if self._stages[number] is not None)
        while wave:
            found = self._look_up(wave, lookup)
            above: set[int] = set()
            for number in wave:
                stage = self._take(number)
                what = found.get(stage.key, _ABSENT)
                self._known[number] = what.known
                if stage.absent is not None and what.known is not Known.DONE:
                    self._refuse(stage)
                    continue
                placed.append(self._place(stage, what, grown))
                if what.known is not Known.DONE:
                    above.update(stage.parents)
            wave = sorted(number for number in above if self._stages[number] is not None)
        return placed

    def _refuse(self, stage: NamedTask) -> None:
        """Note a stage that nothing computes and that does not exist; raise once there are enough of them."""
        assert stage.absent is not None
        detail, pointer = stage.absent
        self._faults.setdefault(pointer, Fault(detail, pointer))
        if len(self._faults) > MAX_FAULTS:
            raise SpecError(bounded(list(self._faults.values())))

    def _level(self, parents: Sequence[int]) -> int:
        return 1 + max([self._levels[number] for number in parents], default=-1)

    def _take(self, number: int) -> NamedTask:
        stage, self._stages[number] = self._stages[number], None
        assert stage is not None, "a stage is placed once"
        return stage

    def _look_up(self, numbers: Sequence[int], lookup: Lookup) -> Mapping[str, Found]:
        stages = [stage for number in numbers if (stage := self._stages[number]) is not None]
        return lookup(stages) if stages else {}

    def _place(self, task: NamedTask, found: Found, grown: dict[PlannedCall, None]) -> Planned:
        if found.known is Known.DONE:
            return Planned(task, Fate.CACHED, found.known, None)
        if found.known is Known.SHARED:
            return Planned(task, Fate.SHARED, found.known, found.call)
        room = self._room[task.kind]
        call = self._open.get((task.kind, task.group)) if room > 1 else None
        if call is None or call.size >= room:
            call = PlannedCall(task.kind, level=self._level(task.parents))
            self.calls[task.kind] += 1
            if room > 1:
                self._open[task.kind, task.group] = call
        call.add(task.cost)
        call.parents.add(tuple(task.parents))
        grown[call] = None
        return Planned(task, Fate.NEW, found.known, call)
