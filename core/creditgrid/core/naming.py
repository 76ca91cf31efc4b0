"""Naming: a grid's cells as named tasks, and the stages below them, each once, in chunks.

It needs the spec, the experiment and the datasets, and nothing that was computed before. So the service does it in a
process of its own; ``plan`` then decides what happens to each task. A million cells are named in the memory of their
keys and distinct stages.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from creditgrid.core.costing import Costing
from creditgrid.core.datasets import DatasetRef
from creditgrid.core.errors import DatasetError, Fault, PluginError, SpecError, did_you_mean
from creditgrid.core.experiment import Params
from creditgrid.core.packed_tasks import params_text, shared_text
from creditgrid.core.spec.grid import Grid
from creditgrid.core.task import Task, TaskKind
from creditgrid.core.work import Cost

CODE = "code"
"""The kind of the artifact that holds brought code."""
CHUNK = 1000
"""Cells in a chunk."""
MAX_DATASETS = 100
"""The most datasets that one sweep names; each is read from end to end when it is first named."""
MAX_STAGES = 500_000
"""The most distinct stages below the cells of a sweep: a sweep of 100,000 seeds has 400,000."""


class NamedTask(NamedTuple):
    """A task as a plan needs it.

    ``parents`` are numbers of stages, in the order in which a naming yields them. ``params`` and ``shared`` are its
    texts, see ``packed_tasks``. ``absent`` is the detail and the pointer of the fault if nothing computes such a task
    and its artifact does not exist; None for other tasks. ``cost`` is None if it is unknown.
    """

    key: str
    kind: str
    group: str
    parents: Sequence[int]
    params: str
    shared: str
    absent: Sequence[str] | None = None
    cost: Cost | None = None


class NamedCell(NamedTuple):
    """A cell: its number in the grid, and its measure task."""

    number: int
    task: NamedTask


@dataclass(frozen=True, slots=True)
class Chunk:
    """Cells, and the stages below them that no earlier chunk has, parents before children.

    ``faults`` say by kind what is wrong with its cost model, as far as that is known.
    """

    stages: Sequence[NamedTask]
    cells: Sequence[NamedCell]
    faults: Mapping[str, str] = field(default_factory=dict)


def name_cells(
    grid: Grid,
    kinds: Mapping[str, TaskKind],
    datasets: Mapping[str, DatasetRef],
    *,
    only: Container[int] | None = None,
    first: int = 0,
) -> Iterator[Chunk]:
    """Every cell once, in chunks; with ``only``, those with these indices; those before ``first`` are left out.

    Raises:
        SpecError: cells whose values make no sense together, and a grid with too many stages.
        PluginError: the experiment's own code raises.
    """
    seen: set[bytes] = set()
    numbers: dict[str, int] = {}
    before: Task | None = None  # most cells have the parents of the cell before
    parents: Sequence[int] = ()
    shared = ""
    costing = Costing(kinds)
    cost: Cost | None = None
    alike = False  # whether cells with one shared text have one cost
    cells = ((index, params) for index, params in enumerate(grid.cells(datasets)) if only is None or index in only)
    while some := list(itertools.islice(cells, CHUNK)):
        stages: list[NamedTask] = []
        named: list[NamedCell] = []
        for index, params in some:
            dataset = datasets[params.__dict__["dataset"]] if datasets else None
            task, ancestors = _name(grid, params, dataset)
            packed = bytes.fromhex(task.key)
            if packed in seen:  # two spellings of one cell have one key
                continue
            seen.add(packed)
            if index < first:
                continue
            if before is None or not _shares(task, before):
                for ancestor in ancestors:
                    if ancestor.key not in numbers:
                        numbers[ancestor.key] = len(numbers)
                        above = [numbers[key] for key in ancestor.parents.values()]
                        of_stage = costing.of_stage(ancestor, above, ancestors, dataset)
                        stages.append(_stage(ancestor, above, _absent(grid, kinds, ancestor), of_stage))
                before, shared = task, shared_text(task)
                parents = [numbers[key] for key in task.parents.values()]
                alike = not costing.varies(task)
                cost = costing.of_cell(task, shared, ancestors, dataset)
            elif not alike:
                cost = costing.of_cell(task, shared, ancestors, dataset)
            named.append(
                NamedCell(
                    index, NamedTask(task.key, task.kind, task.group, parents, params_text(task), shared, None, cost)
                )
            )
        if len(numbers) > MAX_STAGES:
            detail = f"the cells depend on more than {MAX_STAGES:,} trainings, fits and other stages: split the sweep"
            raise SpecError([Fault(detail, "/axes")])
        if named:
            yield Chunk(stages, named, dict(costing.faults))


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
    distinct = list(dict.fromkeys(names))
    if len(distinct) > MAX_DATASETS:
        detail = f"{len(distinct):,} datasets are more than the {MAX_DATASETS} that a sweep may name: split it"
        raise SpecError([Fault(detail, grid.pointer_to("dataset", distinct[MAX_DATASETS]))])
    found, faults = {}, []
    own = grid.experiment.datasets
    for name in distinct:
        try:
            found[name] = own[name] if name in own else resolve(name)
        except DatasetError as error:
            hint = did_you_mean(name, own, "; or did you mean {!r}?")
            faults.append(Fault(f"{error}{hint}", grid.pointer_to("dataset", name)))
    if faults:
        raise SpecError(faults)
    return found


def _name(grid: Grid, params: Params, dataset: DatasetRef | None) -> tuple[Task, Sequence[Task]]:
    try:
        return grid.experiment.cell(params, dataset)
    except Exception as error:
        raise PluginError(f"{grid.experiment.name}: cell() raised {type(error).__name__}: {error}") from error


def _shares(task: Task, other: Task) -> bool:
    """Whether the tasks have one shared text. Then they have the same parents, and so the same stages below them."""
    same = task.group == other.group and task.parents == other.parents and task.source == other.source
    return same and task.version == other.version


def _stage(task: Task, parents: Sequence[int], absent: Sequence[str] | None, cost: Cost | None) -> NamedTask:
    return NamedTask(task.key, task.kind, task.group, parents, params_text(task), shared_text(task), absent, cost)


def _absent(grid: Grid, kinds: Mapping[str, TaskKind], task: Task) -> Sequence[str] | None:
    """The fault if nothing computes the task and its artifact does not exist."""
    if kinds[task.kind].run is not None or task.kind == CODE:  # the code was loaded to name the cells
        return None
    (name,) = task.params.values()  # of the artifact; a spec gives it in the parameter named after the kind
    detail = f"there is no {task.kind} {name}: import it first (creditgrid import-{task.kind} FILE)"
    return detail, grid.pointer_to(task.kind, name)
