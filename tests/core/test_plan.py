"""Plans: every missing key is computed once, parents first, and nothing that exists is computed."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditgrid.core import naming
from creditgrid.core.datasets import DatasetRef
from creditgrid.core.errors import DatasetError, SpecError
from creditgrid.core.experiment import Experiment, Params, Summary
from creditgrid.core.experiments.registry import registry
from creditgrid.core.experiments.stages import STAGES
from creditgrid.core.naming import CHUNK, NamedTask, name_cells, resolve_datasets
from creditgrid.core.plan import Fate, Found, Known, Plan, Planned, PlannedCall
from creditgrid.core.spec.grid import Grid
from creditgrid.core.spec.model import parse
from creditgrid.core.spec.validation import validate
from creditgrid.core.task import Task, TaskKind

LINESEARCH = registry().experiments["linesearch"]

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


def nothing(tasks: Sequence[NamedTask]) -> dict[str, Found]:
    return {}


def done(keys: set[str]) -> Any:
    return lambda tasks: {task.key: Found(Known.DONE) for task in tasks if task.key in keys}


class Whole:
    """A plan that was made to its end."""

    def __init__(
        self, grid: Grid, kinds: Mapping[str, TaskKind], datasets: Mapping[str, DatasetRef], lookup: Any, **some: Any
    ) -> None:
        plan = Plan(kinds)
        chunks = list(name_cells(grid, kinds, datasets, **some))
        self.numbered = [stage for chunk in chunks for stage in chunk.stages]
        steps = [plan.add(chunk, lookup) for chunk in chunks]
        steps += [plan.add_left(numbers, lookup) for numbers in plan.left()]
        self.cells = [cell for step in steps for cell in step.cells]
        self.stages = [stage for step in steps for stage in step.stages]
        self.calls: list[PlannedCall] = list(dict.fromkeys(call for step in steps for call in step.calls))
        assert plan.calls == Counter(call.kind for call in self.calls)

    def parents(self, item: Planned) -> set[str]:
        return {self.numbered[number].key for number in item.task.parents}


def grid_of(experiment: Experiment, document: Mapping[str, Any]) -> tuple[Grid, dict[str, TaskKind]]:
    kinds = {kind.name: kind for kind in (*STAGES, *experiment.kinds, experiment.measure)}
    return validate(parse(dict(document)), experiment, kinds), kinds


def plan_of(experiment: Experiment, document: Mapping[str, Any], lookup: Any = nothing) -> Whole:
    grid, kinds = grid_of(experiment, document)
    datasets = {DATASET.name: DATASET} if "dataset" in experiment.params.model_fields else {}
    return Whole(grid, kinds, datasets, lookup)


# -- the line search -----------------------------------------------------------------------------------------------


def test_the_issues_grid_is_3_trainings_6_fits_3_groups_and_504_cells() -> None:
    plan = plan_of(LINESEARCH, ISSUE_GRID)
    assert len(plan.cells) == 504
    kinds = Counter(item.task.kind for item in plan.stages)
    assert kinds == {"data": 1, "probe": 3, "feedback": 3, "train": 3, "fit": 6}
    calls = Counter(call.kind for call in plan.calls)
    assert calls == {"data": 1, "probe": 3, "feedback": 3, "train": 3, "fit": 6, "linesearch": 3}
    assert sorted(call.size for call in plan.calls if call.kind == "linesearch") == [168, 168, 168]
    assert Counter((item.task.kind, item.fate) for _, item in plan.cells) == {("linesearch", Fate.NEW): 504}


def test_a_second_plan_of_it_finds_everything_cached() -> None:
    first = plan_of(LINESEARCH, ISSUE_GRID)
    keys = {item.task.key for item in (*first.stages, *(item for _, item in first.cells))}
    again = plan_of(LINESEARCH, ISSUE_GRID, done(keys))
    assert {item.fate for _, item in again.cells} == {Fate.CACHED}
    assert {item.fate for item in again.stages} == {Fate.CACHED}
    assert again.calls == []
    assert [item.task.key for _, item in again.cells] == [item.task.key for _, item in first.cells]


def test_rows_that_exist_need_no_checkpoint() -> None:
    keys = {item.task.key for _, item in plan_of(LINESEARCH, ISSUE_GRID).cells}
    plan = plan_of(LINESEARCH, ISSUE_GRID, done(keys))
    assert {item.fate for item in plan.stages} == {Fate.UNNEEDED}
    assert plan.calls == []


def test_checkpoints_of_one_run_are_one_call() -> None:
    document = {
        **ISSUE_GRID,
        "fixed": {"dataset": "pictures", "train_epochs": 9, "method": "oracle_bp", "eta": 0.1},
        "axes": {"checkpoint_epoch": [0, 3, 9], "seed": [1, 2]},
    }
    plan = plan_of(LINESEARCH, document)
    assert Counter(item.task.kind for item in plan.stages)["train"] == 6
    assert sorted(call.size for call in plan.calls if call.kind == "train") == [3, 3]
    members = defaultdict(set)
    for item in plan.stages:
        if item.task.kind == "train":
            params = json.loads(item.task.params)
            members[item.call].add((params["seed"], params["epoch"]))
    assert sorted(map(sorted, members.values())) == [[(seed, epoch) for epoch in (0, 3, 9)] for seed in (1, 2)]


def test_one_dataset_under_two_names_is_one_set_of_cells() -> None:
    copy = DatasetRef("copy", DATASET.fingerprint, 5000, 100, 10, (3, 32, 32), {"package": "parquet", "path": "/q"})
    document = {
        **ISSUE_GRID,
        "fixed": {"method": "dfa", "eta": 0.1},
        "axes": {"dataset": ["pictures", "copy"], "seed": [1]},
    }
    grid, kinds = grid_of(LINESEARCH, document)
    plan = Whole(grid, kinds, {"pictures": DATASET, "copy": copy}, nothing)
    assert [number for number, _ in plan.cells] == [0]


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
WIDE = replace(LAYERED, measure=replace(MEASURE, max_group=10**6))
TOY = {"name": "n", "experiment": "layered"}
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
    plan = plan_of(LAYERED, document)
    keys = sorted({item.task.key for item in (*plan.stages, *(item for _, item in plan.cells))})
    return document, {key: draw(st.sampled_from(Known)) for key in keys}


@given(situations())
def test_every_missing_key_is_in_exactly_one_call_and_nothing_else_is(
    situation: tuple[dict[str, Any], dict[str, Known]],
) -> None:
    document, known = situation
    asked: list[str] = []

    def lookup(tasks: Sequence[NamedTask]) -> dict[str, Found]:
        asked.extend(task.key for task in tasks)
        return {task.key: Found(known[task.key], 7 if known[task.key] is Known.SHARED else None) for task in tasks}

    plan = plan_of(LAYERED, document, lookup)
    placed = [*plan.stages, *(item for _, item in plan.cells)]
    keys = [item.task.key for item in placed]
    assert len(set(keys)) == len(keys)
    assert sorted(asked) == sorted(keys)  # each looked up once

    # Needed, from the bottom up: a cell without a result, and every stage that a needed task depends on. That holds
    # also where another sweep computes the task: its parents may have failed meanwhile.
    parents = {item.task.key: plan.parents(item) for item in placed}
    undone = {key for key in keys if known[key] is not Known.DONE}
    wanted_keys = {item.task.key for _, item in plan.cells} & undone
    for _ in range(2):
        wanted_keys |= {key for child in wanted_keys for key in parents[child]} & undone
    new = {key for key in wanted_keys if known[key] is not Known.SHARED}
    for item in placed:
        key = item.task.key
        wanted = {Known.DONE: Fate.CACHED, Known.SHARED: Fate.SHARED}.get(
            known[key], Fate.NEW if key in new else Fate.UNNEEDED
        )
        assert (item.fate, item.known) == (wanted, known[key])
        assert isinstance(item.call, PlannedCall) == (key in new)
        assert (item.call == 7) == (wanted is Fate.SHARED)

    members = defaultdict(list)
    for item in placed:
        if isinstance(item.call, PlannedCall):
            members[item.call].append(item)
    limits = {"low": 2, "high": 1, "layered": 3}
    assert set(members) == set(plan.calls)
    for call in plan.calls:
        computed = members[call]
        assert {item.task.kind for item in computed} == {call.kind}
        assert len({item.task.group for item in computed}) == 1
        assert call.size == len(computed) <= limits[call.kind]
        above = {key for item in computed for key in parents[item.task.key]}
        assert set(call.waits_for) == {key for key in above if known[key] is not Known.DONE}
    # No more calls than the groups need.
    tasks = {item.task.key: item.task for item in placed}
    groups = Counter((tasks[key].kind, tasks[key].group) for key in new)
    assert len(plan.calls) == sum(-(-n // limits[kind]) for (kind, _), n in groups.items())

    for number, stage in enumerate(plan.numbered):
        assert all(parent < number for parent in stage.parents)  # parents are named before children


@given(SMALL, SMALL)
def test_only_some_cells_can_be_planned(indices: list[int], values: list[int]) -> None:
    document = {"name": "n", "experiment": "layered", "axes": {"x": sorted(values), "a": [0, 1]}}
    grid, kinds = grid_of(LAYERED, document)
    everything = [(number, item.task.key) for number, item in Whole(grid, kinds, {}, nothing).cells]
    plan = Whole(grid, kinds, {}, nothing, only=set(indices))
    assert [(n, item.task.key) for n, item in plan.cells] == [(n, key) for n, key in everything if n in indices]
    assert sum(call.size for call in plan.calls if call.kind == "layered") == len(plan.cells)
    later = Whole(grid, kinds, {}, nothing, first=2)
    assert [(n, item.task.key) for n, item in later.cells] == everything[2:]


def test_cells_are_named_and_looked_up_in_chunks() -> None:
    sizes: list[int] = []

    def lookup(tasks: Sequence[NamedTask]) -> dict[str, Found]:
        sizes.append(len(tasks))
        return {}

    plan = plan_of(LAYERED, {**TOY, "axes": {"x": {"range": [2 * CHUNK + 5]}}}, lookup)
    assert len(plan.cells) == 2 * CHUNK + 5
    assert max(sizes) == CHUNK
    assert sum(sizes) == len(plan.cells) + 2


def test_a_call_grows_with_later_chunks() -> None:
    """A group that is spread over the grid is one call, though its cells come in several chunks."""
    plan = plan_of(WIDE, {**TOY, "axes": {"x": {"range": [CHUNK]}, "a": [0, 1]}})
    assert [call.size for call in plan.calls if call.kind == "layered"] == [CHUNK, CHUNK]


def test_a_grid_with_too_many_stages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(naming, "MAX_STAGES", 10)
    with pytest.raises(SpecError, match="more than 10 trainings"):
        plan_of(LAYERED, {**TOY, "axes": {"b": {"range": [11]}}})


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
