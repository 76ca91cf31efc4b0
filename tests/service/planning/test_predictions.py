"""What plans and statuses say of cost models that fail, and of packages' own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import creditgrid_noop
import pytest
from sweeping import House

from creditgrid.core.costing import Given
from creditgrid.core.states import State
from creditgrid.core.task import Task, TaskKind
from creditgrid.core.work import Cost, CostModel, Work
from creditgrid.service.prediction.calibration import Calibration
from creditgrid.service.prediction.forecast import COMMIT_S, HANDOVER_S
from creditgrid.service.prediction.throughput import CALL_S

NOOP: dict[str, Any] = {"name": "n", "experiment": "noop", "axes": {"x": [1, 2, 3]}, "fixed": {"base": "ok"}}
UNITS = Calibration(1.0, 1.0, 1.0)


@pytest.fixture
def declare() -> Iterator[Any]:
    """Gives a kind of the no-op package a cost model; takes it back afterwards."""
    changed: list[TaskKind] = []

    def give(kind: TaskKind, model: CostModel) -> None:
        changed.append(kind)
        object.__setattr__(kind, "cost", model)

    yield give
    for kind in changed:
        object.__setattr__(kind, "cost", None)


def raises(task: Task, given: Given) -> Cost:
    raise ZeroDivisionError("of no use")


def measured(house: House) -> None:
    """The machine has been measured."""
    house.services.calibrations._found["cpu"] = UNITS


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        (raises, "ZeroDivisionError: of no use"),
        (lambda task, given: Cost(Work(float("nan"))), "launches are nan"),
        (lambda task, given: Cost(Work(-1.0)), "launches are -1.0"),
        (lambda task, given: Cost(Work(1e300)), "launches are 1e+300"),
        (lambda task, given: "much", "it returned str"),
    ],
)
def test_a_cost_model_that_fails_is_named_in_the_plan_and_the_sweep_runs(
    house: House, declare: Any, model: CostModel, fault: str
) -> None:
    declare(creditgrid_noop.MEASURE, model)
    measured(house)
    view = house.plan(NOOP)
    assert (view.estimated_seconds, view.compute_seconds, view.cells.estimated_seconds) == (None, None, None)
    (note,) = (note for note in view.notes if note.startswith("noop: "))
    assert fault in note
    sweep = house.submit(**NOOP)
    house.step()
    assert house.sweeps.get(sweep).remaining_s is None
    house.drain()
    assert house.counts(sweep) == {State.SUCCEEDED: 3}
    house.check()


def test_a_declared_cost_is_used_before_anything_ran(house: House, declare: Any) -> None:
    declare(creditgrid_noop.BASE, lambda task, given: Cost(Work(5.0), bytes=1000))
    declare(
        creditgrid_noop.MEASURE,
        lambda task, given: Cost(Work(flops=float(task.params["x"])), (("", Work(elements=10.0)),)),
    )
    unknown = house.plan(NOOP)
    assert (unknown.estimated_seconds, unknown.estimated_bytes) == (None, 1000)
    assert any("could not" in note or "unknown" in note for note in unknown.notes)
    measured(house)
    view = house.plan(NOOP)
    # A base, then one call of three cells that share one part.
    assert view.compute_seconds == pytest.approx(5 + (1 + 2 + 3 + 10) + 2 * CALL_S)
    assert view.estimated_seconds == pytest.approx(21 + 2 * CALL_S + 2 * HANDOVER_S + COMMIT_S)
    assert (view.estimated_bytes, view.cpus, view.notes) == (1000, 8.0, [])
    sweep = house.submit(**NOOP)
    assert house.sweeps.get(sweep).remaining_s == pytest.approx(view.estimated_seconds)
    house.check()
    house.step()
    house.runner.work(next(iter(house.runner.calls)))  # the base
    house.step()
    left = house.sweeps.get(sweep).remaining_s
    assert left == pytest.approx(16 + CALL_S + HANDOVER_S + COMMIT_S, abs=0.2)
    again = house.submit(**{**NOOP, "axes": {"x": [3, 4]}})  # shares the call of the first (16 s), and has one of 14 s
    left = house.sweeps.get(again).remaining_s
    assert left == pytest.approx(15 + CALL_S + HANDOVER_S + COMMIT_S, abs=0.2)  # alike, so of their mean
    house.check()
    house.drain()
    house.check()


def test_a_dry_run_waits_a_moment_for_the_measurement_of_the_machine(house: House) -> None:
    calibrations = house.services.calibrations
    calibrations._file, calibrations._command = None, ("sleep", "30")
    calibrations.start()
    started = time.monotonic()
    spec = {**NOOP, "experiment": "linesearch", "axes": {"eta": [0.1]}, "fixed": {"dataset": "digits", "method": "dfa"}}
    view = house.plan(spec)
    assert 2 < time.monotonic() - started < 10
    assert view.estimated_seconds is None
    assert view.notes == ["the speed of this machine is being measured: ask again in a few seconds"]
    calibrations.stop()
    assert not calibrations.measuring
    assert calibrations.problem is None
