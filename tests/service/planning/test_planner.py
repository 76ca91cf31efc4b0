"""Plans use the results in the store and the ledger and what open sweeps compute; a dry run shows it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from sweeping import House

from creditgrid.core.datasets import resolve
from creditgrid.core.errors import SpecError
from creditgrid.core.naming import NamedTask
from creditgrid.core.plan import Known
from creditgrid.core.spec.text import SpecText
from creditgrid.core.states import State
from creditgrid.core.wire import PlanView
from creditgrid.service.planning.naming import name
from creditgrid.service.planning.planner import Planner
from creditgrid.service.planning.plans import nobody_stops
from creditgrid.service.prediction.calibration import Calibrations
from creditgrid.service.prediction.forecast import COMMIT_S, HANDOVER_S, Forecasts
from creditgrid.service.prediction.throughput import Throughput
from creditgrid.workers.artifacts import ArtifactStore
from creditgrid.workers.runner import Capacity

NOOP: dict[str, Any] = {"name": "n", "experiment": "noop", "axes": {"x": [1, 2]}, "fixed": {"base": "ok"}}
ISSUE: dict[str, Any] = {
    "name": "the issue's grid",
    "experiment": "linesearch",
    "fixed": {"dataset": "digits", "train_epochs": 1, "fit_epochs": 1, "batch_size": 32},
    "axes": {
        "seed": [42, 43, 44],
        "method": ["dfa", "scalar_cb", "vec", "oracle_bp"],
        "update_range": ["last1", "last2", "all"],
        "norm_mode": ["raw", "norm"],
        "eta": {"logspace": [1e-5, 1e-2, 7]},
    },
}


def numbers(view: PlanView) -> dict[str, tuple[int, int, int, int, int, int]]:
    """By kind: total, cached, shared, new, unneeded, calls."""
    kinds = {"cells": view.cells, **view.tasks}
    return {name: (k.total, k.cached, k.shared, k.new, k.unneeded, k.calls) for name, k in kinds.items()}


def plan_without_ledger(store: ArtifactStore, document: dict[str, Any]) -> PlanView:
    planner = Planner(None, store, lambda request, _: name(request, resolve), forecasts())
    return planner.plan(SpecText.of(document), nobody_stops, lambda _: None)


def forecasts() -> Forecasts:
    """Where nothing was measured."""
    calibrations = Calibrations(None)
    return Forecasts(Throughput(calibrations.of), calibrations, lambda: Capacity(2.0, 0.0, 1))


def files(root: Path) -> set[Path]:
    return set(root.rglob("*"))


def test_a_dry_run_of_the_issues_grid_shows_its_tasks_and_writes_nothing(tmp_path: Path) -> None:
    view = plan_without_ledger(ArtifactStore(tmp_path / "artifacts"), ISSUE)
    assert numbers(view) == {
        "cells": (504, 0, 0, 504, 0, 3),
        "data": (1, 0, 0, 1, 0, 1),
        "probe": (3, 0, 0, 3, 0, 3),
        "feedback": (3, 0, 0, 3, 0, 3),
        "train": (3, 0, 0, 3, 0, 3),
        "fit": (6, 0, 0, 6, 0, 6),
    }
    assert view.groups == 3
    assert (view.name, view.experiment) == ("the issue's grid", "linesearch")
    assert (view.estimated_seconds, view.compute_seconds) == (None, None)
    assert view.estimated_bytes == sum(kind.estimated_bytes or 0 for kind in view.tasks.values()) > 10_000_000
    assert [view.cpus, view.gpus, len(view.notes)] == [2.0, 0.0, 1]
    assert {miss.kind: miss.count for miss in view.misses} == {
        "linesearch": 504, "data": 1, "probe": 3, "feedback": 3, "train": 3, "fit": 6,
    }  # fmt: skip
    assert all(miss.reason.startswith("never computed") for miss in view.misses)
    (train,) = (miss.example for miss in view.misses if miss.kind == "train")
    assert train["params"]["seed"] == 42
    assert files(tmp_path) == set()


def test_a_plan_follows_the_results_that_exist(house: House) -> None:
    assert numbers(house.plan(NOOP)) == {"cells": (2, 0, 0, 2, 0, 1), "noop_base": (1, 0, 0, 1, 0, 1)}
    sweep = house.submit(**NOOP)
    assert numbers(house.plan(NOOP)) == {"cells": (2, 0, 2, 0, 0, 0), "noop_base": (1, 0, 1, 0, 0, 0)}
    house.step()
    house.runner.work(next(iter(house.runner.calls)))
    house.step()
    assert numbers(house.plan(NOOP)) == {"cells": (2, 0, 2, 0, 0, 0), "noop_base": (1, 1, 0, 0, 0, 0)}
    house.drain()
    assert numbers(house.plan(NOOP)) == {"cells": (2, 2, 0, 0, 0, 0), "noop_base": (1, 1, 0, 0, 0, 0)}
    wider = {**NOOP, "axes": {"x": [1, 2, 3]}}
    assert numbers(house.plan(wider)) == {"cells": (3, 2, 0, 1, 0, 1), "noop_base": (1, 1, 0, 0, 0, 0)}

    (stage,) = house.tasks.page(sweep, None, "", 5)[0]
    shutil.rmtree(house.store.path(stage.key))
    assert numbers(house.plan(NOOP)) == {"cells": (2, 2, 0, 0, 0, 0), "noop_base": (1, 0, 0, 0, 1, 0)}
    view = house.plan(wider)
    assert numbers(view) == {"cells": (3, 2, 0, 1, 0, 1), "noop_base": (1, 0, 0, 1, 0, 1)}
    (reason,) = (miss.reason for miss in view.misses if miss.kind == "noop_base")
    assert "artifact" in reason


def test_what_failed_is_new_and_says_so(house: House) -> None:
    house.submit(**NOOP)
    house.step()
    house.runner.fail(next(iter(house.runner.calls)))
    house.step(2)
    view = house.plan(NOOP)
    assert numbers(view) == {"cells": (2, 0, 0, 2, 0, 1), "noop_base": (1, 0, 0, 1, 0, 1)}
    assert {miss.reason for miss in view.misses} == {"tried before and ended without a result"}


def test_estimates_of_a_kind_without_a_cost_model_come_from_its_finished_calls(house: House) -> None:
    before = house.plan(NOOP)
    assert (before.estimated_seconds, before.compute_seconds, before.estimated_bytes) == (None, None, None)
    assert any("noop" in note and "declares no cost" in note for note in before.notes)
    sweep = house.submit(**NOOP)
    house.drain()
    (stage,) = house.tasks.page(sweep, None, "", 5)[0]
    cached = house.plan(NOOP)
    assert (cached.estimated_seconds, cached.compute_seconds, cached.estimated_bytes) == (0, 0, 0)
    more = house.plan({**NOOP, "axes": {"x": list(range(10, 110))}})
    with house.ledger.read() as connection:
        seconds = connection.exec_driver_sql("SELECT seconds / size FROM calls WHERE kind = 'noop'").scalar()
    assert seconds is not None
    assert more.compute_seconds == more.cells.estimated_seconds == pytest.approx(100 * seconds)
    assert more.estimated_seconds == pytest.approx(100 * seconds + HANDOVER_S + COMMIT_S)
    assert more.notes == []
    other = house.plan({**NOOP, "fixed": {"base": "raise"}})
    assert other.tasks["noop_base"].estimated_bytes == stage.bytes


def test_a_lookup_says_what_is_known_of_each_task(house: House) -> None:
    sweep = house.submit(**NOOP)
    house.drain()
    (stage,) = house.tasks.page(sweep, None, "", 5)[0]
    done = [cell.key for cell in house.cells.page(sweep, None, -1, 5)[0]]
    bad = house.submit(**{**NOOP, "fixed": {"base": "raise"}})
    house.drain()
    (failed,) = house.tasks.page(bad, None, "", 5)[0]
    shared = [cell.key for cell in house.cells.page(house.submit(**{**NOOP, "axes": {"x": [9]}}), None, -1, 5)[0]]

    def task(kind: str, key: str) -> NamedTask:
        return NamedTask(key, kind, key, (), "{}", "{}")

    planner = Planner(house.ledger, house.store, lambda request, _: name(request, resolve), forecasts())

    def known(tasks: list[NamedTask]) -> dict[str, Known]:
        with house.ledger.read() as connection:
            return {key: found.known for key, found in planner.look_up(connection, tasks).items()}

    asked = [
        task("noop_base", stage.key),
        *(task("noop", key) for key in (*done, *shared)),
        task("noop_base", failed.key),
        task("noop", "0" * 64),
    ]
    assert known(asked) == {
        stage.key: Known.DONE,
        **dict.fromkeys(done, Known.DONE),
        **dict.fromkeys(shared, Known.SHARED),
        failed.key: Known.FAILED,
    }
    shutil.rmtree(house.store.path(stage.key))
    assert known(asked[:1]) == {stage.key: Known.GONE}
    assert known([]) == {}


def test_an_artifact_that_no_ledger_knows_is_used(tmp_path: Path, house: House) -> None:
    house.submit(**NOOP)
    house.drain()
    view = plan_without_ledger(house.store, NOOP)
    assert numbers(view) == {
        "cells": (2, 0, 0, 2, 0, 1),
        "noop_base": (1, 1, 0, 0, 0, 0),
    }
    (tmp_path / "other").mkdir()
    other = House(tmp_path / "other")
    shutil.copytree(house.store.root, other.store.root)
    sweep = other.submit(**NOOP)
    other.drain()
    assert other.counts(sweep) == {State.SUCCEEDED: 2}
    assert [call.kind for call in other.runner.history] == ["noop"]
    assert [stage.state for stage in other.tasks.page(sweep, None, "", 5)[0]] == [State.CACHED]
    other.close()


def test_resources_of_the_measurement_are_named_measure(house: House) -> None:
    for kind in ("measure", "noop_base", "train"):
        house.plan({**NOOP, "resources": {kind: {"cpu": 2}}})
    for kind in ("noop", "linesearch", "trian"):
        with pytest.raises(SpecError) as caught:
            house.plan({**NOOP, "resources": {kind: {"cpu": 2}}})
        assert caught.value.faults[0].pointer == f"/resources/{kind}"


@pytest.mark.parametrize(
    ("document", "pointer"),
    [
        (None, ""),
        ({**NOOP, "experiment": "nope"}, "/experiment"),
        ({**NOOP, "axes": {"x": [1], "seed": [1]}}, "/axes/seed"),
        ({**ISSUE, "fixed": {**ISSUE["fixed"], "dataset": "nope"}}, "/fixed/dataset"),
        ({**ISSUE, "fixed": {**ISSUE["fixed"], "dataset": "/nowhere/at/all"}}, "/fixed/dataset"),
        ({**ISSUE, "fixed": {**ISSUE["fixed"], "checkpoint_epoch": 2}}, "/fixed/checkpoint_epoch"),
    ],
)
def test_a_bad_spec_is_refused_with_a_pointer(house: House, document: Any, pointer: str) -> None:
    with pytest.raises(SpecError) as caught:
        house.plan(document)
    assert [fault.pointer for fault in caught.value.faults] == [pointer]
