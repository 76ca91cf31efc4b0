"""Costs that are asked of cost models: each question once, and nonsense is named."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest

from creditgrid.core import costing
from creditgrid.core.costing import Costing, Given, similar
from creditgrid.core.datasets import DatasetRef
from creditgrid.core.plan import PlannedCall
from creditgrid.core.task import Task, TaskKind
from creditgrid.core.work import LARGEST, Cost, CostModel, Work

DATASET = DatasetRef("pictures", "d" * 64, 500, 100, 10, (3, 32, 32), {"package": "parquet", "path": "/p"})


def kind(cost: CostModel | None, **values: Any) -> TaskKind:
    return TaskKind("k", 1, None, cost=cost, **values)


def ask(model: CostModel, *params: dict[str, Any]) -> tuple[list[Cost | None], dict[str, str]]:
    asking = Costing({"k": kind(model)})
    found = [asking.of_cell(kind(model).task(each), "{}", (), DATASET) for each in params]
    return found, asking.faults


def raises(task: Task, given: Given) -> Cost:
    raise ZeroDivisionError("of no use")


def says(answer: Any) -> CostModel:
    return lambda task, given: answer


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        (raises, "ZeroDivisionError: of no use"),
        (says(5.0), "it returned float, not a Cost"),
        (says(Cost(5.0)), "where a Work is needed"),  # type: ignore[arg-type]
        (says(Cost(Work(math.nan))), "its launches are nan"),
        (says(Cost(Work(flops=-1.0))), "its flops are -1.0"),
        (says(Cost(Work(elements=math.inf))), "its elements are inf"),
        (says(Cost(Work(flops=10 * LARGEST))), "accepted: 0 to 1e+24"),
        (says(Cost(Work(flops="many"))), "TypeError"),  # type: ignore[arg-type]
        (says(Cost(Work(flops=True))), "which is no number"),
        (says(Cost(bytes=-5)), "its bytes are -5"),
        (says(Cost(bytes=10**40)), "its bytes are"),
        (says(Cost(shared=(("a", Work()),) * 2000)), "2,000 shared parts"),
        (lambda task, given: sys.exit(3), "SystemExit: 3"),
        (says(Cost(shared=((3, Work()),))), "accepted: a text"),  # type: ignore[arg-type]
        (says(Cost(shared=("a",))), "ValueError"),  # type: ignore[arg-type]
    ],
)
def test_a_cost_model_that_fails_is_named_and_its_tasks_are_unknown(model: CostModel, fault: str) -> None:
    found, faults = ask(model, {"x": 1}, {"x": 2})
    assert found == [None, None]
    assert fault in faults["k"]
    assert faults["k"].startswith("its cost model failed: ")
    assert len(faults["k"]) <= 300


def test_a_slow_cost_model_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costing, "LONGEST_S", 0.05)

    def slow(task: Task, given: Given) -> Cost:
        time.sleep(0.06)
        return Cost(Work(1.0))

    started = time.perf_counter()
    found, faults = ask(slow, *({"x": x} for x in range(1000)))
    assert time.perf_counter() - started < 5
    assert found[-1] is None
    assert "takes too long" in faults["k"]


def test_a_cost_model_that_hangs_is_interrupted() -> None:
    """In a process of its own, as plans are named: pytest's time limit uses alarms here."""
    script = """
import time
from creditgrid.core import costing
from creditgrid.core.task import TaskKind

costing.LONGEST_S = 0.3
kind = TaskKind("k", 1, None, cost=lambda task, given: time.sleep(60))
asking = costing.Costing({"k": kind})
print(asking.of(kind.task({}), (), None), asking.faults)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout.startswith("None {'k': 'its cost model takes too long")


@pytest.mark.parametrize("number", [5, 10**20, np.int64(5), np.float32(5.0)])
def test_numbers_of_any_type_become_plain_ones(number: Any) -> None:
    (found,), faults = ask(says(Cost(Work(flops=number), bytes=number)), {"x": 1})
    assert faults == {}
    assert found is not None
    assert found == Cost(Work(flops=float(number)), bytes=float(number))
    msgpack.packb(found)  # as it goes to the service


def test_an_unknown_cost_is_no_fault() -> None:
    assert ask(says(None), {"x": 1}) == ([None], {})


def test_equal_questions_are_asked_once() -> None:
    asked: list[Any] = []

    def model(task: Task, given: Given) -> Cost:
        asked.append(task.params["x"])
        return Cost(Work(float(task.params["x"])))

    some = kind(model, cost_by=("x",))
    asking = Costing({"k": some})
    for y in range(100):
        for x in (1, 2):
            cost = asking.of_cell(some.task({"x": x, "y": y}), "shared", (), None)
            assert cost == Cost(Work(float(x)))
    assert asked == [1, 2]
    asking.of_cell(some.task({"x": 1, "y": 0}), "other parents", (), None)
    assert asked == [1, 2, 1]
    asking.of_cell(some.task({"x": 1, "y": [3]}), "{}", (), None)
    asking.of_stage(some.task({"x": [1]}), (), (), None)  # a list is like no other
    assert asked == [1, 2, 1, 1, [1]]


@pytest.mark.parametrize("cost_by", ["epochs", 5, ("epochs", 3), {"x": 1}.items()])
def test_parameters_that_are_no_names_are_named(cost_by: Any) -> None:
    some = kind(says(Cost(Work(1.0))), cost_by=cost_by)
    asking = Costing({"k": some})
    for x in (1, 2):
        task = some.task({"x": x})
        asking.varies(task)
        assert asking.of_cell(task, "{}", (), None) is None
    assert "it must be a tuple of names of parameters" in asking.faults["k"]


def test_a_list_in_the_first_stage_is_like_no_other() -> None:
    asked: list[Any] = []

    def model(task: Task, given: Given) -> Cost:
        asked.append(task.params["x"])
        return Cost()

    some = kind(model)
    asking = Costing({"k": some})
    asking.of_stage(some.task({"x": [1]}), (), (), None)
    asking.of_stage(some.task({"x": 2}), (), (), None)
    for parent in (0, 1):  # children of both
        asking.of_stage(some.task({"x": 3}), (parent,), (), None)
    assert asked == [[1], 2, 3, 3]


def test_a_model_sees_its_parents_by_role() -> None:
    def model(task: Task, given: Given) -> Cost:
        return Cost(Work(float(given.parents["below"].params["x"])))

    some = kind(model)
    below = some.task({"x": 7})
    assert Costing({"k": some}).of(some.task({}, {"below": below}), (below,), None) == Cost(Work(7.0))


def test_a_call_adds_what_its_tasks_own_and_has_what_they_share_once() -> None:
    call = PlannedCall("train")
    for epoch in (5, 100, 20):
        call.add(Cost(Work(1.0), (("", Work(0.0, float(epoch))), ("other", Work(elements=3.0)))))
    assert call.work() == Work(3.0, 100.0, 3.0)
    call.add(None)
    assert call.work() is None


@pytest.mark.parametrize(
    ("params", "scale"),
    [
        ({"epochs": 3}, 3 * 500),
        ({"train_epochs": 4, "steps": 10}, 4 * 500 * 10),
        ({"fit_epochs": 2, "seed": 7}, 2 * 500),
        ({"images": 30}, 30),
        ({"epochs": "many", "k": 0}, 1),
        ({"x": 3}, 1),
    ],
)
def test_without_a_cost_model_tasks_are_compared_by_epochs_and_images(params: dict[str, Any], scale: float) -> None:
    task = kind(None).task(params)
    assert similar(task, (), DATASET) == Cost(Work(launches=float(scale)))


def test_the_epochs_of_an_ancestor_are_its_own() -> None:
    checkpoint = replace(kind(None), name="train").task({"epochs": 100})
    task = kind(None).task({"train_epochs": 100, "k": 3})
    assert similar(task, (checkpoint,), DATASET) == Cost(Work(launches=3.0))
