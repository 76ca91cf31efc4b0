"""What the ledger and the store know of a plan's tasks, and a dry run that shows the plan of a spec.

The artifact store says which stages have a result. The ledger says which cells have one, and what open sweeps compute.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

import sqlalchemy as sa

from creditgrid.core.experiments.registry import registry
from creditgrid.core.naming import Chunk, NamedTask
from creditgrid.core.packed_tasks import task_of
from creditgrid.core.plan import Fate, Found, Known, Lookup, Plan, Planned
from creditgrid.core.spec.text import SpecText
from creditgrid.core.states import RESULT, State
from creditgrid.core.wire import Miss, PlanKind, PlanView
from creditgrid.service.ledger.counts import mean_bytes, mean_seconds
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.queries import task_states
from creditgrid.service.ledger.tables import NEVER_RUN
from creditgrid.service.planning.naming import Header, Namer, NamingRequest
from creditgrid.workers.artifacts import ArtifactStore

REASONS: Mapping[Known, str] = {
    Known.ABSENT: "never computed with these parameters",
    Known.GONE: "computed before, but its artifact is gone",
    Known.FAILED: "tried before and ended without a result",
}


class Planner:
    """Plans specs against a ledger and a store; without a ledger (nothing was ever run) every cell is new.

    Args:
        name: reads, validates and expands specs.
    """

    def __init__(self, ledger: Ledger | None, store: ArtifactStore, name: Namer) -> None:
        self._ledger, self._store, self._name = ledger, store, name

    @contextmanager
    def name(self, request: NamingRequest, check: Callable[[], None]) -> Iterator[tuple[Header, Iterator[Chunk]]]:
        """The header of a validated spec, and its cells in chunks.

        Args:
            check: called often; what it raises ends the naming.

        Raises:
            SpecError: with a pointer to each fault.
        """
        with closing(self._name(request, check)) as naming:
            header = next(naming)
            assert isinstance(header, Header), "the header comes first"
            yield header, (item for item in naming if isinstance(item, Chunk))

    def plan(self, text: SpecText, check: Callable[[], None], sized: Callable[[int], None]) -> PlanView:
        """A dry run of a spec.

        Args:
            check: as for ``name``.
            sized: takes the number of cells once it is known.

        Raises:
            SpecError: with a pointer to each fault.
        """
        plan = Plan(registry().kinds)
        shown = _Shown()
        with self.name(NamingRequest(text), check) as (header, chunks):
            sized(header.cells)
            for chunk in chunks:
                with self._lookup() as lookup:
                    step = plan.add(chunk, lookup)
                shown.add([*(planned for _, planned in step.cells), *step.stages])
        for numbers in plan.left():
            with self._lookup() as lookup:
                shown.add(plan.add_left(numbers, lookup).stages)
        return shown.view(header, plan.calls, self._past())

    def look_up(self, connection: sa.Connection | None, tasks: Sequence[NamedTask]) -> Mapping[str, Found]:
        """What is known of these tasks; without a connection, what the store knows."""
        measures = {experiment.measure.name for experiment in registry().experiments.values()}
        done = Found(Known.DONE)
        found = {task.key: done for task in tasks if task.kind not in measures and self._store.has(task.key)}
        rest = {task.key: task.kind for task in tasks if task.key not in found}
        if connection is None or not rest:
            return found
        for key, (state, call) in task_states(connection, list(rest)).items():
            if state is State.PENDING:
                found[key] = Found(Known.SHARED, call)
            elif state in RESULT:
                # An artifact that the ledger remembers and the store does not hold is gone.
                found[key] = done if rest[key] in measures else Found(Known.GONE)
            elif call != NEVER_RUN:
                found[key] = Found(Known.FAILED)
        return found

    @contextmanager
    def _lookup(self) -> Iterator[Lookup]:
        """What is known now."""
        if self._ledger is None:
            yield lambda tasks: self.look_up(None, tasks)
            return
        with self._ledger.read() as connection:
            yield lambda tasks: self.look_up(connection, tasks)

    def _past(self) -> dict[str, tuple[float, float]]:
        """Mean seconds and bytes of a task by kind, over the calls of this ledger."""
        if self._ledger is None:
            return {}
        with self._ledger.read() as connection:
            sizes = mean_bytes(connection)
            return {kind: (mean, sizes.get(kind, 0.0)) for kind, mean in mean_seconds(connection).items()}


class _Shown:
    """What a dry run shows of the tasks of a plan."""

    def __init__(self) -> None:
        self._fates: dict[str, Counter[Fate]] = defaultdict(Counter)
        self._misses: dict[tuple[str, Known], tuple[int, NamedTask]] = {}

    def add(self, placed: Sequence[Planned]) -> None:
        for item in placed:
            self._fates[item.task.kind][item.fate] += 1
            if item.fate is Fate.NEW:
                count, example = self._misses.get((item.task.kind, item.known), (0, item.task))
                self._misses[item.task.kind, item.known] = count + 1, example

    def view(self, header: Header, calls: Mapping[str, int], past: Mapping[str, tuple[float, float]]) -> PlanView:
        measure = registry().experiment(header.experiment).measure.name
        self._fates.setdefault(measure, Counter())
        views = {kind: _kind_view(fates, calls.get(kind, 0), past.get(kind)) for kind, fates in self._fates.items()}
        cells = views.pop(measure)
        run = [view for view in (cells, *views.values()) if view.new]
        seconds = [view.estimated_seconds for view in run]
        sizes = [view.estimated_bytes for view in run]
        return PlanView(
            name=header.name,
            experiment=header.experiment,
            cells=cells,
            tasks=views,
            groups=cells.calls,
            misses=[
                Miss(kind=kind, reason=REASONS[known], count=count, example=_payload(example))
                for (kind, known), (count, example) in self._misses.items()
            ],
            estimated_seconds=sum(s for s in seconds if s is not None) if None not in seconds else None,
            estimated_bytes=sum(s for s in sizes if s is not None) if None not in sizes else None,
        )


def _payload(task: NamedTask) -> dict[str, Any]:
    """What the task's key is the hash of."""
    return task_of(task.kind, task.key, task.params, task.shared).payload()


def _kind_view(counts: Counter[Fate], calls: int, past: tuple[float, float] | None) -> PlanKind:
    new = counts[Fate.NEW]
    return PlanKind(
        total=counts.total(),
        cached=counts[Fate.CACHED],
        shared=counts[Fate.SHARED],
        new=new,
        unneeded=counts[Fate.UNNEEDED],
        calls=calls,
        estimated_seconds=None if past is None else new * past[0],
        estimated_bytes=None if past is None else round(new * past[1]),
    )
