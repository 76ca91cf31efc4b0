"""Plans: every missing key is computed once, parents first, and nothing that exists is computed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.errors import DatasetError, SpecError
from creditgrid.core.experiment import Experiment, Params, Summary
from creditgrid.core.experiments.linesearch import EXPERIMENT as LINESEARCH
from creditgrid.core.experiments.stages import STAGES
from creditgrid.core.plan import LOOKUP_CHUNK, Fate, Known, Plan, PlannedCell, PlannedTask, resolve_datasets
from creditgrid.core.spec.grid import Grid
from creditgrid.core.spec.model import parse
from creditgrid.core.spec.validation import validate
from creditgrid.core.task import Task, TaskKind

DATASET = DatasetRef("pictures", "d" * 64, 5000, 100, 10, (3, 32, 32), {"package": "parquet", "path": "/p"})
ISSUE_GRID = {
    "name": "the issue's grid",
    "experiment": "linesearch",
    "fixed": {"dataset": "pictures", "train_epochs": 1, "fit_epochs": 1},
    "axes": {
        "seed": [42, 43, 44],
        "method": ["dfa", "scalar_cb", "vec", "oracle_bp"],
        "update_range": ["last1", "last2", "all"],
        "norm_mode": ["raw", "norm"],
        "eta": {"logspace": [1e-5, 1e-2, 7]},
    },
}


def nothing(tasks: Sequence[Task]) -> dict[str, Known]:
    return {}


def grid_of(experiment: Experiment, document: Mapping[str, Any]) -> tuple[Grid, dict[str, TaskKind]]:
    kinds = {kind.name: kind for kind in (*STAGES, *experiment.kinds, experiment.measure)}
    return validate(parse(dict(document)), experiment, kinds), kinds


def plan_of(
    experiment: Experiment, document: Mapping[str, Any], lookup: Any = nothing
) -> tuple[list[PlannedCell], list[PlannedTask], Plan]:
    grid, kinds = grid_of(experiment, document)
    datasets = {DATASET.name: DATASET} if "dataset" in experiment.params.model_fields else {}
    plan = Plan(grid, kinds, datasets, lookup)
    cells = list(plan.cells())
    return cells, plan.stages(), plan


# -- the line search -----------------------------------------------------------------------------------------------


def test_the_issues_grid_is_3_trainings_6_fits_3_groups_and_504_cells() -> None:
    cells, stages, plan = plan_of(LINESEARCH, ISSUE_GRID)
    assert len(cells) == 504
    kinds = Counter(item.task.kind for item in stages)
    assert kinds == {"data": 1, "probe": 3, "feedback": 3, "train": 3, "fit": 6}
    calls = Counter(call.kind for call in plan.calls)
    assert calls == {"data": 1, "probe": 3, "feedback": 3, "train": 3, "fit": 6, "linesearch": 3}
    assert sorted(call.size for call in plan.calls if call.kind == "linesearch") == [168, 168, 168]
    assert Counter((cell.planned.task.kind, cell.planned.fate) for cell in cells) == {("linesearch", Fate.NEW): 504}


def test_a_second_plan_of_it_finds_everything_cached() -> None:
    cells, stages, _ = plan_of(LINESEARCH, ISSUE_GRID)
    done = {item.task.key for item in (*stages, *(cell.planned for cell in cells))}
    again, below, plan = plan_of(
        LINESEARCH, ISSUE_GRID, lambda tasks: {t.key: Known.DONE for t in tasks if t.key in done}
    )
    assert {cell.planned.fate for cell in again} == {Fate.CACHED}
    assert {item.fate for item in below} == {Fate.CACHED}
    assert plan.calls == []
    assert [cell.planned.task.key for cell in again] == [cell.planned.task.key for cell in cells]


def test_rows_that_exist_need_no_checkpoint() -> None:
    cells, _, _ = plan_of(LINESEARCH, ISSUE_GRID)
    done = {cell.planned.task.key for cell in cells}
    _, below, plan = plan_of(LINESEARCH, ISSUE_GRID, lambda tasks: {t.key: Known.DONE for t in tasks if t.key in done})
    assert {item.fate for item in below} == {Fate.UNNEEDED}
    assert plan.calls == []


def test_checkpoints_of_one_run_are_one_call() -> None:
    document = {
        **ISSUE_GRID,
        "fixed": {"dataset": "pictures", "train_epochs": 9, "method": "oracle_bp", "eta": 0.1},
        "axes": {"checkpoint_epoch": [0, 3, 9], "seed": [1, 2]},
    }
    _, stages, plan = plan_of(LINESEARCH, document)
    assert Counter(item.task.kind for item in stages)["train"] == 6
    assert sorted(call.size for call in plan.calls if call.kind == "train") == [3, 3]
    members = defaultdict(set)
    for item in stages:
        if item.task.kind == "train":
            members[item.call].add((item.task.params["seed"], item.task.params["epoch"]))
    assert sorted(map(sorted, members.values())) == [[(seed, epoch) for epoch in (0, 3, 9)] for seed in (1, 2)]


def test_one_dataset_under_two_names_is_one_set_of_cells() -> None:
    copy = DatasetRef("copy", DATASET.fingerprint, 5000, 100, 10, (3, 32, 32), {"package": "parquet", "path": "/q"})
    document = {
        **ISSUE_GRID,
        "fixed": {"method": "dfa", "eta": 0.1},
        "axes": {"dataset": ["pictures", "copy"], "seed": [1]},
    }
    grid, kinds = grid_of(LINESEARCH, document)
    plan = Plan(grid, kinds, {"pictures": DATASET, "copy": copy}, nothing)
    assert [cell.index for cell in plan.cells()] == [0]


# -- plans of a toy experiment against the definition of a plan ------------------------------------------------------


def run(tasks: Any, inputs: Any, device: Any) -> Any:
    raise AssertionError("nothing is run here")


class LayeredParams(Params):
    """Cells on two layers of stages."""

    a: int = 0
    b: int = 0
    x: int = 0
    deep: bool = True


LOW = TaskKind("low", 1, run, max_group=2)
HIGH = TaskKind("high", 1, run)
MEASURE = TaskKind("layered", 1, run, max_group=3)


def layered(params: LayeredParams, dataset: object) -> tuple[Task, Sequence[Task]]:
    low = LOW.task({"a": params.a}, group=("low",))
    parents, ancestors = {"low": low}, [low]
    if params.deep:
        high = HIGH.task({"b": params.b}, {"low": low})
        parents, ancestors = {"high": high}, [low, high]
    return MEASURE.task(dict(params.__dict__), parents, group=(params.a,)), ancestors


LAYERED = Experiment(
    "layered", "Layers", LayeredParams, {}, MEASURE, layered, lambda rows: Summary("", [], [], []), (LOW, HIGH)
)
SMALL = st.lists(st.integers(0, 4), min_size=1, max_size=4, unique=True)


@st.composite
def situations(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Known]]:
    """A grid, and what is known of its keys."""
    axes = {
        "a": draw(SMALL),
        "b": draw(SMALL),
        "x": draw(SMALL),
        "deep": draw(st.sampled_from([[True], [True, False]])),
    }
    document = {"name": "n", "experiment": "layered", "axes": axes}
    cells, stages, _ = plan_of(LAYERED, document)
    keys = sorted({item.task.key for item in (*stages, *(cell.planned for cell in cells))})
    return document, {key: draw(st.sampled_from(Known)) for key in keys}


@given(situations())
def test_every_missing_key_is_in_exactly_one_call_and_nothing_else_is(
    situation: tuple[dict[str, Any], dict[str, Known]],
) -> None:
    document, known = situation
    asked: list[str] = []

    def lookup(tasks: Sequence[Task]) -> dict[str, Known]:
        asked.extend(task.key for task in tasks)
        return {task.key: known[task.key] for task in tasks}

    cells, stages, plan = plan_of(LAYERED, document, lookup)
    placed = [*stages, *(cell.planned for cell in cells)]
    keys = [item.task.key for item in placed]
    assert len(set(keys)) == len(keys)
    assert sorted(asked) == sorted(keys)  # each looked up once

    # Needed, from the bottom up: a cell without a result, and every stage that a needed task depends on. That holds
    # also where another sweep computes the task: its parents may have failed meanwhile.
    tasks = {item.task.key: item.task for item in placed}
    undone = {key for key in keys if known[key] is not Known.DONE}
    wanted_keys = {cell.planned.task.key for cell in cells} & undone
    for _ in range(2):
        wanted_keys |= {key for child in wanted_keys for key in tasks[child].parents.values()} & undone
    new = {key for key in wanted_keys if known[key] is not Known.SHARED}
    for item in placed:
        key = item.task.key
        wanted = {Known.DONE: Fate.CACHED, Known.SHARED: Fate.SHARED}.get(
            known[key], Fate.NEW if key in new else Fate.UNNEEDED
        )
        assert (item.fate, item.known) == (wanted, known[key])
        assert (item.call is not None) == (key in new)

    members = defaultdict(list)
    for item in placed:
        if item.call is not None:
            members[item.call].append(item.task)
    limits = {"low": 2, "high": 1, "layered": 3}
    assert sorted(members) == [call.number for call in plan.calls] == list(range(len(plan.calls)))
    for call in plan.calls:
        computed = members[call.number]
        assert {task.kind for task in computed} == {call.kind}
        assert len({task.group for task in computed}) == 1
        assert call.size == len(computed) <= limits[call.kind]
        parents = {key for task in computed for key in task.parents.values()}
        assert call.waits_for == {key for key in parents if known[key] is not Known.DONE}
    # No more calls than the groups need.
    groups = Counter((tasks[key].kind, tasks[key].group) for key in new)
    assert len(plan.calls) == sum(-(-n // limits[kind]) for (kind, _), n in groups.items())

    order = {item.task.key: place for place, item in enumerate(stages)}
    for item in stages:
        assert all(order[key] < order[item.task.key] for key in item.task.parents.values())


@given(SMALL, SMALL)
def test_only_some_cells_can_be_planned(indices: list[int], values: list[int]) -> None:
    document = {"name": "n", "experiment": "layered", "axes": {"x": sorted(values), "a": [0, 1]}}
    grid, kinds = grid_of(LAYERED, document)
    plan = Plan(grid, kinds, {}, nothing)
    everything = [(cell.index, cell.planned.task.key) for cell in Plan(grid, kinds, {}, nothing).cells()]
    some = [(cell.index, cell.planned.task.key) for cell in plan.cells(only=set(indices))]
    assert some == [(index, key) for index, key in everything if index in indices]
    assert sum(call.size for call in plan.calls) == len(some)


def test_keys_are_looked_up_in_chunks() -> None:
    sizes: list[int] = []

    def lookup(tasks: Sequence[Task]) -> dict[str, Known]:
        sizes.append(len(tasks))
        return {}

    document = {"name": "n", "experiment": "layered", "axes": {"x": {"range": [2 * LOOKUP_CHUNK + 5]}}}
    cells, _, _ = plan_of(LAYERED, document, lookup)
    assert len(cells) == 2 * LOOKUP_CHUNK + 5
    assert max(sizes) == LOOKUP_CHUNK
    assert sum(sizes) == len(cells) + 2


# -- datasets ------------------------------------------------------------------------------------------------------


def test_each_dataset_is_resolved_once() -> None:
    asked: list[str] = []

    def resolve(name: str) -> DatasetRef:
        asked.append(name)
        return DATASET

    document = {
        **ISSUE_GRID,
        "fixed": {"method": "dfa", "eta": 0.1},
        "axes": {"dataset": ["one", "two"], "seed": [1, 2]},
        "include": [{"dataset": "three"}, {"dataset": "one", "seed": 9}],
    }
    grid, _ = grid_of(LINESEARCH, document)
    assert set(resolve_datasets(grid, resolve)) == {"one", "two", "three"}
    assert asked == ["one", "two", "three"]


def test_an_experiment_without_images_asks_for_no_dataset() -> None:
    grid, _ = grid_of(LAYERED, {"name": "n", "experiment": "layered"})
    assert resolve_datasets(grid, lambda name: pytest.fail("asked")) == {}


def test_every_unusable_dataset_gets_a_pointer() -> None:
    def resolve(name: str) -> DatasetRef:
        raise DatasetError(f"no {name} here")

    document = {
        **ISSUE_GRID,
        "fixed": {"method": "dfa", "eta": 0.1},
        "axes": {"dataset": ["one", "two"]},
        "include": [{"dataset": "three"}],
    }
    grid, _ = grid_of(LINESEARCH, document)
    with pytest.raises(SpecError) as caught:
        resolve_datasets(grid, resolve)
    assert {fault.pointer: fault.detail for fault in caught.value.faults} == {
        "/axes/dataset/0": "no one here",
        "/axes/dataset/1": "no two here",
        "/include/0/dataset": "no three here",
    }
    grid, _ = grid_of(LINESEARCH, ISSUE_GRID)
    with pytest.raises(SpecError) as caught:
        resolve_datasets(grid, resolve)
    assert [fault.pointer for fault in caught.value.faults] == ["/fixed/dataset"]
