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
from creditgrid.core.naming import CODE, Chunk, NamedTask
from creditgrid.core.packed_tasks import task_of
from creditgrid.core.plan import Fate, Found, Known, Lookup, Plan, Planned, PlannedCall
from creditgrid.core.spec.text import SpecText
from creditgrid.core.states import RESULT, State
from creditgrid.core.wire import Miss, PlanKind, PlanView
from creditgrid.core.work import NO_WORK, Work
from creditgrid.service.call_settings import parsed
from creditgrid.service.ledger.ledger import Ledger
from creditgrid.service.ledger.queries import task_states
from creditgrid.service.ledger.tables import NEVER_RUN, UNKNOWN
from creditgrid.service.planning.naming import Header, Namer, NamingRequest
from creditgrid.service.prediction.forecast import Alike, Forecasts, Prediction
from creditgrid.workers.artifacts import ArtifactStore

REASONS: Mapping[Known, str] = {
    Known.ABSENT: "never computed with these parameters",
    Known.GONE: "computed before, but its artifact is gone",
    Known.FAILED: "tried before and ended without a result",
}


CALIBRATION_WAIT_S = 3.0
"""A dry run waits so long for the measurement of the machine, if it is under way."""


class Planner:
    """Plans specs against a ledger and a store; without a ledger (nothing was ever run) every cell is new.

    Args:
        name: reads, validates and expands specs.
        forecasts: what plans will take.
        wait_s: how long a dry run may wait for the measurement of the machine.
    """

    def __init__(
        self,
        ledger: Ledger | None,
        store: ArtifactStore,
        name: Namer,
        forecasts: Forecasts,
        wait_s: float = CALIBRATION_WAIT_S,
    ) -> None:
        self._ledger, self._store, self._name = ledger, store, name
        self._forecasts, self._wait_s = forecasts, wait_s

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
                shown.add_stages(step.stages)
                shown.add_calls(step.calls)
                shown.faults.update(chunk.faults)
        for numbers in plan.left():
            with self._lookup() as lookup:
                shown.add(plan.add_left(numbers, lookup).stages)
        self._forecasts.calibrations.wait(self._wait_s)
        if self._ledger is not None:
            with self._ledger.read() as connection:
                self._forecasts.throughput.refresh(connection)
        return shown.view(header, plan.calls, self._forecasts)

    def look_up(self, connection: sa.Connection | None, tasks: Sequence[NamedTask]) -> Mapping[str, Found]:
        """What is known of these tasks; without a connection, what the store knows."""
        measures = {experiment.measure.name for experiment in registry().experiments.values()}
        done = Found(Known.DONE)
        # The cells could not be named without their code.
        found = {
            task.key: done
            for task in tasks
            if task.kind == CODE or (task.kind not in measures and self._store.has(task.key))
        }
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


class _Shown:
    """What a dry run shows of the tasks and calls of a plan."""

    def __init__(self) -> None:
        self._fates: dict[str, Counter[Fate]] = defaultdict(Counter)
        self._misses: dict[tuple[str, Known], tuple[int, NamedTask]] = {}
        self._calls: dict[tuple[str, int, int], tuple[int, Work]] = {}  # by kind, level and scale
        self._bytes: dict[str, float] = defaultdict(float)  # of artifacts, as their cost models say
        self._unsized: Counter[str] = Counter()
        self.faults: dict[str, str] = {}
        """By kind: what is wrong with its cost model."""

    def add(self, placed: Sequence[Planned]) -> None:
        for item in placed:
            kind = item.task.kind
            self._fates[kind][item.fate] += 1
            if item.fate is Fate.NEW:
                count, example = self._misses.get((kind, item.known), (0, item.task))
                self._misses[kind, item.known] = count + 1, example

    def add_stages(self, placed: Sequence[Planned]) -> None:
        """The artifacts of new stages."""
        for item in placed:
            if item.fate is Fate.NEW:
                cost = item.task.cost
                if cost is None or cost.bytes is None:
                    self._unsized[item.task.kind] += 1
                else:
                    self._bytes[item.task.kind] += cost.bytes

    def add_calls(self, calls: Sequence[PlannedCall]) -> None:
        """Calls that are new, or have more tasks than before."""
        for call in calls:
            if call.counted is not None:
                self._count(call, *call.counted, -1)
            call.counted = (call.work(),)
            self._count(call, *call.counted, 1)

    def _count(self, call: PlannedCall, work: Work | None, sign: int) -> None:
        key = call.kind, call.level, UNKNOWN if work is None else work.scale
        n, total = self._calls.get(key, (0, NO_WORK))
        self._calls[key] = n + sign, total if work is None else total.plus(work.times(sign))

    def view(self, header: Header, calls: Mapping[str, int], forecasts: Forecasts) -> PlanView:
        measure = registry().experiment(header.experiment).measure.name
        self._fates.setdefault(measure, Counter())
        capacity = forecasts.capacity()
        alike = [Alike(*key, n, n, work) for key, (n, work) in self._calls.items() if n]
        found = forecasts.of_plan(alike, parsed(header.document).resources)
        sizes = {kind: self._size(kind, forecasts) for kind in self._fates if kind != measure}
        views = {
            kind: _kind_view(fates, calls.get(kind, 0), found.by_kind.get(kind, 0.0), sizes.get(kind, 0))
            for kind, fates in self._fates.items()
        }
        cells = views.pop(measure)
        known = [size for kind, size in sizes.items() if size is not None]
        return PlanView(
            name=header.name,
            experiment=header.experiment,
            cells=cells,
            tasks=views,
            groups=cells.calls,
            misses=[
                Miss(kind=kind, reason=REASONS[why], count=count, example=_payload(example))
                for (kind, why), (count, example) in self._misses.items()
            ],
            estimated_seconds=found.seconds,
            compute_seconds=found.compute_seconds,
            estimated_bytes=sum(known) if len(known) == len(sizes) else None,
            cpus=capacity.cpu,
            gpus=capacity.gpu,
            notes=self._notes(found, sizes, forecasts),
        )

    def _size(self, kind: str, forecasts: Forecasts) -> int | None:
        """Bytes of the new artifacts of a kind; those without a cost are as large as others were."""
        unsized = self._unsized[kind]
        usual = forecasts.throughput.artifact_bytes(kind) if unsized else 0.0
        return None if usual is None else round(self._bytes[kind] + unsized * usual)

    def _notes(self, found: Prediction, sizes: Mapping[str, int | None], forecasts: Forecasts) -> list[str]:
        notes = [f"{kind}: {fault}; its time and size are unknown" for kind, fault in sorted(self.faults.items())]
        unknown = [kind for kind, seconds in found.by_kind.items() if seconds is None and kind not in self.faults]
        without = [kind for kind in unknown if registry().kinds[kind].cost is None]
        if without:
            notes.append(
                f"no {' and no '.join(sorted(without))} has run here, and the package declares no cost: time unknown"
            )
        rest = sorted(set(unknown) - set(without))
        if rest and forecasts.calibrations.measuring:
            notes.append("the speed of this machine is being measured: ask again in a few seconds")
        elif rest:
            why = forecasts.calibrations.problem or "the size of the images is unknown"
            notes.append(f"{', '.join(rest)}: time unknown: {why}")
        unsized = sorted(kind for kind, size in sizes.items() if size is None and kind not in self.faults)
        if unsized:
            notes.append(f"{', '.join(unsized)}: size unknown")
        return notes


def _payload(task: NamedTask) -> dict[str, Any]:
    """What the task's key is the hash of."""
    return task_of(task.kind, task.key, task.params, task.shared).payload()


def _kind_view(counts: Counter[Fate], calls: int, seconds: float | None, size: int | None) -> PlanKind:
    return PlanKind(
        total=counts.total(),
        cached=counts[Fate.CACHED],
        shared=counts[Fate.SHARED],
        new=counts[Fate.NEW],
        unneeded=counts[Fate.UNNEEDED],
        calls=calls,
        estimated_seconds=seconds,
        estimated_bytes=size,
    )
