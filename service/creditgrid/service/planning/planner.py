"""A spec document becomes a plan, and a dry run shows the plan.

The artifact store says which stages have a result. The ledger says which cells have one, and what open sweeps compute.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.experiments.registry import registry
from creditgrid.core.plan import Fate, Known, Plan, PlannedTask, resolve_datasets
from creditgrid.core.spec.grid import Grid
from creditgrid.core.spec.model import MEASURE, parse
from creditgrid.core.spec.validation import validate
from creditgrid.core.states import RESULT, State
from creditgrid.core.task import Task
from creditgrid.core.wire import Miss, PlanKind, PlanView
from creditgrid.service.ledger.counts import mean_bytes, mean_seconds
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.queries import task_states
from creditgrid.service.ledger.tables import NEVER_RUN
from creditgrid.workers.artifacts import ArtifactStore

REASONS: Mapping[Known, str] = {
    Known.ABSENT: "never computed with these parameters",
    Known.GONE: "computed before, but its artifact is gone",
    Known.FAILED: "tried before and ended without a result",
}


class Planner:
    """Plans specs against a ledger and a store; without a ledger (nothing was ever run) every cell is new."""

    def __init__(self, ledger: Ledger | None, store: ArtifactStore, resolve: Callable[[str], DatasetRef]) -> None:
        self._ledger, self._store, self._resolve = ledger, store, resolve

    def prepare(self, document: Any, *earlier: Any) -> tuple[Grid, Plan]:
        """A validated spec and its plan, not yet iterated; ``earlier`` are the spec's forms before each extension.

        Raises:
            SpecError: with a pointer to each fault.
        """
        grid = replace(self._grid(document), earlier=tuple(self._grid(form) for form in earlier))
        datasets = resolve_datasets(grid, self._resolve)
        return grid, Plan(grid, registry().kinds_of(grid.experiment), datasets, self.look_up)

    def _grid(self, document: Any) -> Grid:
        spec = parse(document)
        experiment = registry().experiment(spec.experiment)
        kinds = registry().kinds_of(experiment)
        return validate(spec, experiment, (kinds.keys() - {experiment.measure.name}) | {MEASURE})

    def plan(self, document: Any) -> PlanView:
        """A dry run of a spec.

        Raises:
            SpecError: with a pointer to each fault.
        """
        grid, plan = self.prepare(document)
        fates: dict[str, Counter[Fate]] = defaultdict(Counter)
        misses: dict[tuple[str, Known], tuple[int, Task]] = {}

        def note(item: PlannedTask) -> None:
            fates[item.task.kind][item.fate] += 1
            if item.fate is Fate.NEW:
                count, example = misses.get((item.task.kind, item.known), (0, item.task))
                misses[item.task.kind, item.known] = count + 1, example

        for cell in plan.cells():
            note(cell.planned)
        measure = grid.experiment.measure.name
        fates.setdefault(measure, Counter())
        for item in plan.stages():
            note(item)
        past = self._past()
        calls = Counter(call.kind for call in plan.calls)
        views = {kind: _kind_view(counts, calls[kind], past.get(kind)) for kind, counts in fates.items()}
        cells = views.pop(measure)
        run = [view for view in (cells, *views.values()) if view.new]
        seconds = [view.estimated_seconds for view in run]
        sizes = [view.estimated_bytes for view in run]
        return PlanView(
            name=grid.spec.name,
            experiment=grid.spec.experiment,
            cells=cells,
            tasks=views,
            groups=cells.calls,
            misses=[
                Miss(kind=kind, reason=REASONS[known], count=count, example=example.payload())
                for (kind, known), (count, example) in misses.items()
            ],
            estimated_seconds=sum(s for s in seconds if s is not None) if None not in seconds else None,
            estimated_bytes=sum(s for s in sizes if s is not None) if None not in sizes else None,
        )

    def look_up(self, tasks: Sequence[Task]) -> Mapping[str, Known]:
        """What is known of these tasks."""
        measures = {experiment.measure.name for experiment in registry().experiments.values()}
        found = {task.key: Known.DONE for task in tasks if task.kind not in measures and self._store.has(task.key)}
        rest = [task for task in tasks if task.key not in found]
        if self._ledger is None or not rest:
            return found
        with self._ledger.read() as connection:
            known = task_states(connection, [task.key for task in rest])
        for task in rest:
            if task.key not in known:
                continue
            state, call = known[task.key]
            if state is State.PENDING:
                found[task.key] = Known.SHARED
            elif state in RESULT:
                # An artifact that the ledger remembers and the store does not hold is gone.
                found[task.key] = Known.DONE if task.kind in measures else Known.GONE
            else:
                found[task.key] = Known.FAILED if call != NEVER_RUN else Known.ABSENT
        return found

    def _past(self) -> dict[str, tuple[float, float]]:
        """Mean seconds and bytes of a task by kind, over the calls of this ledger."""
        if self._ledger is None:
            return {}
        with self._ledger.read() as connection:
            sizes = mean_bytes(connection)
            return {kind: (mean, sizes.get(kind, 0.0)) for kind, mean in mean_seconds(connection).items()}


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
