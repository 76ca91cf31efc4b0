"""The line search's planning and summary: what shares what, and which step size is best."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.errors import SpecError
from creditgrid.core.experiments.registry import registry
from creditgrid.core.spec.model import parse
from creditgrid.core.spec.validation import validate
from creditgrid.core.task import Task

EXPERIMENT = registry().experiments["linesearch"]
PARAMS: Any = EXPERIMENT.params
cell, summarise = EXPERIMENT.cell, EXPERIMENT.summarise
DATASET = DatasetRef("pictures", "d" * 64, 5000, 100, 10, (3, 32, 32), {"package": "parquet", "path": "/p"})
BASE: dict[str, Any] = {"dataset": "pictures", "method": "vec", "eta": 0.1}
IMPORTED = "L4-d256-D3072-C10-" + "a" * 64


def tasks(**changes: Any) -> dict[str, Task]:
    """The tasks of one cell by kind."""
    measure, ancestors = cell(PARAMS(**{**BASE, **changes}), DATASET)
    order = {task.key: place for place, task in enumerate(ancestors)}
    for task in ancestors:  # parents come first
        assert all(order[key] < order[task.key] for key in task.parents.values())
    assert set(measure.parents.values()) <= set(order)
    return {"measure": measure, **{task.kind: task for task in ancestors}}


def changed(**changes: Any) -> set[str]:
    """The kinds of a vec cell's tasks that get another key, are new, or are not needed any more."""
    before, after = tasks(), tasks(**changes)
    return {kind for kind in before | after if before.get(kind) != after.get(kind)}


def test_each_method_depends_on_what_it_needs() -> None:
    methods = ("oracle_bp", "dfa", "vec", "scalar_cb", "state_bridge")
    below = {method: set(tasks(method=method)) - {"measure"} for method in methods}
    assert below["oracle_bp"] == {"data", "probe", "train"}
    assert below["dfa"] == {"data", "probe", "train", "feedback"}
    assert below["vec"] == below["scalar_cb"] == below["state_bridge"] == {"data", "probe", "train", "fit"}


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({"eta": 0.2}, set()),
        ({"update_range": "last1"}, set()),
        ({"norm_mode": "norm"}, set()),
        ({"update_head": "never"}, set()),
        ({"step_weight_decay": 0.1}, set()),
        ({"step_noise": 0.1}, set()),
        ({"step_batch_size": 64}, {"probe"}),
        ({"step_batch_size": 128}, set()),
        ({"train_rule": "dfa"}, {"train", "fit", "feedback"}),
        ({"random_targets": True}, {"train", "fit"}),
        ({"checkpoint": IMPORTED}, {"train", "fit", "checkpoint"}),
        ({"seed": 7}, {"train", "fit", "probe"}),
        ({"seed": 7, "probe_seed": 42}, {"train", "fit"}),
        ({"probe_seed": 7}, {"probe"}),
        ({"probe_seed": 42}, set()),
        ({"checkpoint_epoch": 3}, {"train", "fit"}),
        ({"checkpoint_epoch": 100}, set()),
        ({"train_epochs": 50}, {"train", "fit"}),
        ({"num_blocks": 2}, {"train", "fit"}),
        ({"d_hidden": 32}, {"train", "fit"}),
        ({"residual_add": False}, {"train", "fit"}),
        ({"w2_std": 0.1}, {"train", "fit"}),
        ({"lr": 0.1}, {"train", "fit"}),
        ({"weight_decay": 0.1}, {"train", "fit"}),
        ({"batch_size": 64}, {"train", "fit", "probe"}),
        ({"fit_epochs": 1}, {"fit"}),
        ({"fit_lr": 0.1}, {"fit"}),
        ({"vec_directions": 1}, {"fit"}),
        ({"vec_eps": 0.1}, {"fit"}),
        ({"step_radius": 0.1}, set()),
        ({"clamp": 1.0}, set()),
        ({"rule": "cosine"}, set()),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),  # the same in every process
)
def test_a_parameter_changes_the_stages_that_depend_on_it_and_no_other(change: dict[str, Any], kinds: set[str]) -> None:
    assert changed(**change) == kinds | {"measure"}  # every parameter is in the cell's own key


def test_every_parameter_is_covered_above() -> None:
    (marker,) = (
        mark
        for mark in test_a_parameter_changes_the_stages_that_depend_on_it_and_no_other.pytestmark  # type: ignore[attr-defined]
        if mark.name == "parametrize"
    )
    covered = {name for change, _ in marker.args[1] for name in change}
    of_others = {name for name in PARAMS.owned if name not in ("fit_epochs", "fit_lr", "vec_directions", "vec_eps")}
    assert covered == set(PARAMS.model_fields) - of_others - {"dataset", "method", "network"}


@pytest.mark.parametrize(
    "change",
    [{"fit_epochs": 60}, {"cb_lambda": 1.0}, {"cb_source": "delta_L"}, {"oracle_reduction": "sum"}, {"kappa": 0.1}],
    ids=str,
)
def test_the_default_and_what_another_unit_owns_change_no_key(change: dict[str, Any]) -> None:
    assert changed(**change) == set()


@pytest.mark.parametrize(
    ("change", "fitted"),
    [
        ({"cb_lambda": 1.0}, True),
        ({"cb_samples": 1}, True),
        ({"cb_sigma": 1.0}, True),
        ({"cb_ema": 0.5}, True),
        ({"cb_term_grad_weight": 0.5}, True),
        ({"cb_source": "delta_L"}, True),
        ({"fit_epochs": 100}, False),  # the default of scalar_cb
        ({"fit_epochs": 60}, True),
        ({"vec_directions": 1}, False),
        ({"vec_eps": 0.1}, False),
    ],
    ids=str,
)
def test_scalar_cb_is_fitted_by_its_own_options(change: dict[str, Any], fitted: bool) -> None:
    before, after = tasks(method="scalar_cb"), tasks(method="scalar_cb", **change)
    assert (before["fit"].key != after["fit"].key) == fitted


def test_the_datasets_content_is_in_every_key_and_its_place_is_in_none() -> None:
    params = PARAMS(**BASE)
    moved = DatasetRef("elsewhere", DATASET.fingerprint, 5000, 100, 10, (3, 32, 32), {"path": "/q"})
    other = DatasetRef("pictures", "e" * 64, 5000, 100, 10, (3, 32, 32), {"path": "/p"})
    (here, below), (there, below_there), (else_, below_else) = (cell(params, ref) for ref in (DATASET, moved, other))
    assert here.key == there.key
    assert [task.key for task in below] == [task.key for task in below_there]
    assert here.key != else_.key
    assert not {task.key for task in below} & {task.key for task in below_else}
    assert "dataset" not in here.params
    assert there.source == {"dataset": "elsewhere"}  # a row says by which name it was asked for


def test_cells_of_one_checkpoint_and_probe_are_one_group() -> None:
    etas = [tasks(eta=eta, method=method, update_range=where)["measure"].group for eta in (0.1, 0.2)
            for method in ("vec", "dfa") for where in ("last1", "all")]  # fmt: skip
    assert len(set(etas)) == 1
    others = [{"seed": 1}, {"checkpoint_epoch": 1}, {"probe_seed": 1}, {"d_hidden": 8}]
    assert len({tasks(**other)["measure"].group for other in others} | set(etas)) == 5


def test_checkpoints_of_one_run_are_one_group_and_other_runs_are_others() -> None:
    assert len({tasks(checkpoint_epoch=epoch)["train"].group for epoch in (0, 5, 100, None)}) == 1
    runs = [{"seed": 1}, {"lr": 0.1}, {"train_epochs": 5}, {"w2_std": 0.5}, {}]
    assert len({tasks(**run)["train"].group for run in runs}) == 5


def faults(**document: Any) -> dict[str, str]:
    spec = parse({"name": "n", "experiment": "linesearch", **document})
    with pytest.raises(SpecError) as caught:
        list(validate(spec, EXPERIMENT, ["train"]).cells())
    return {fault.pointer: fault.detail for fault in caught.value.faults}


def test_a_checkpoint_beyond_training_is_refused() -> None:
    found = faults(fixed={**BASE, "train_epochs": 5}, axes={"checkpoint_epoch": [5, 6]})
    assert found == {"/axes/checkpoint_epoch/1": "checkpoint_epoch 6 is beyond the end of training (train_epochs 5)"}


def test_two_last_blocks_of_one_are_refused() -> None:
    found = faults(fixed={**BASE, "num_blocks": 1}, axes={"update_range": ["last1", "last2"]})
    assert found == {"/axes/update_range/1": "update_range last2 needs num_blocks of at least 2"}


@pytest.mark.parametrize("eta", [float("nan"), float("inf"), -1e-9, "1e-3", None])
def test_a_step_size_is_a_finite_number_of_at_least_zero(eta: Any) -> None:
    assert set(faults(fixed=BASE | {"eta": eta})) == {"/fixed/eta"}


# -- the summary ---------------------------------------------------------------------------------------------------


def row(**values: Any) -> dict[str, Any]:
    measured = {"loss_before_same": 1.0, "loss_after_same": 0.9, "delta_acc_same": 0.0, "credit_rms": 1.0}
    return {
        **PARAMS(**BASE).model_dump(),
        **measured,
        "cell": "c",
        "diverged": False,
        "delta_loss_same": -0.1,
        "delta_loss_held": 0.1,
        **values,
    }


def test_the_best_step_size_has_the_lowest_mean_over_seeds() -> None:
    same = {0.1: [-1.0, -2.0, -3.0], 0.2: [-9.0, 0.0, 0.0], 0.3: [0.5, 0.5, 0.5]}
    rows = [
        row(eta=eta, seed=seed, delta_loss_same=delta, delta_loss_held=-delta)
        for eta, deltas in same.items()
        for seed, delta in enumerate(deltas)
    ]
    (line,) = summarise(rows).rows
    assert (line["best_eta"], line["n"], line["diverged"]) == (0.2, 3, 0)
    assert line["delta_loss_same"] == pytest.approx(-3.0)
    assert line["delta_loss_same_std"] == pytest.approx(statistics.stdev(same[0.2]))
    assert line["delta_loss_same_ci95"] == pytest.approx(4.303 * statistics.stdev(same[0.2]) / math.sqrt(3), rel=1e-3)
    assert line["delta_loss_held"] == pytest.approx(3.0)


def test_each_method_range_and_norm_has_its_line() -> None:
    choices = list(itertools.product(["dfa", "vec"], ["all", "last1"], ["norm", "raw"], [0.1, 0.2]))
    rows = [row(method=m, update_range=r, norm_mode=n, eta=eta, delta_loss_same=-eta) for m, r, n, eta in choices]
    summary = summarise(rows)
    lines = [(line["method"], line["update_range"], line["norm_mode"]) for line in summary.rows]
    assert lines == sorted({choice[:3] for choice in choices})
    assert {line["best_eta"] for line in summary.rows} == {0.2}
    assert {line["n"] for line in summary.rows} == {1}
    assert list(summary.columns)[:3] == ["method", "update_range", "norm_mode"]
    assert all(set(summary.columns) <= set(line) | {"delta_loss_same", "delta_loss_held"} for line in summary.rows)


def test_cells_that_differ_in_more_than_the_seed_are_not_averaged() -> None:
    rows = [
        row(checkpoint_epoch=epoch, seed=seed, delta_loss_same=-1.0 if epoch == 5 else -2.0)
        for epoch in (20, 5, None)
        for seed in (1, 2)
    ]
    summary = summarise(rows)
    found = {line["checkpoint_epoch"]: (line["delta_loss_same"], line["n"]) for line in summary.rows}
    assert found == {None: (-2.0, 2), 5: (-1.0, 2), 20: (-2.0, 2)}
    assert "checkpoint_epoch" in summary.columns
    assert "seed" not in summary.columns


def test_seeds_of_probe_and_training_that_advance_together_are_averaged() -> None:
    (line,) = summarise([row(seed=seed, probe_seed=seed + 7) for seed in range(4)]).rows
    assert line["n"] == 4


@given(st.data())
def test_a_diverged_cell_never_wins(data: st.DataObject) -> None:
    etas, seeds = [0.1, 0.2, 0.3], [1, 2]
    rows = []
    for eta, seed in itertools.product(etas, seeds):
        lost = data.draw(st.sampled_from([None, "same", "held", "other"]))
        delta = data.draw(st.floats(-5, 5))
        values: dict[str, Any] = {"delta_loss_same": delta, "delta_loss_held": 0.0, "diverged": lost is not None}
        values |= {"same": {"delta_loss_same": None}, "held": {"delta_loss_held": None}}.get(lost or "", {})
        rows.append(row(eta=eta, seed=seed, **values))
    whole = {eta: [r for r in rows if r["eta"] == eta] for eta in etas}
    whole = {eta: some for eta, some in whole.items() if not any(r["diverged"] for r in some)}
    (line,) = summarise(rows).rows
    assert line["diverged"] == sum(r["diverged"] for r in rows)
    if not whole:
        assert line["best_eta"] is None
        assert line["n"] == 0
    else:
        means = {eta: statistics.fmean(r["delta_loss_same"] for r in some) for eta, some in whole.items()}
        assert line["best_eta"] in means
        assert means[line["best_eta"]] == min(means.values())


def oracle(best: float | None, **values: Any) -> dict[str, Any]:
    return row(method="oracle_bp", delta_loss_same=best, diverged=best is None, **values)


def test_an_oracle_that_descends_is_said_to() -> None:
    (verdict,) = summarise([oracle(-0.25), oracle(1.0, eta=9.0), row()]).verdicts
    assert (verdict.name, verdict.warning) == ("oracle descends", False)
    assert verdict.numbers["oracle_best_raw_delta_loss_same"] == -0.25


@pytest.mark.parametrize("best", [-1e-6, 0.0, 0.5])
def test_an_oracle_that_does_not_is_a_warning(best: float) -> None:
    (verdict,) = summarise([oracle(best)]).verdicts
    assert (verdict.name, verdict.warning) == ("oracle does not descend", True)
    assert "suspect" in verdict.text


@pytest.mark.parametrize("rows", [[], [row()], [oracle(None)], [oracle(-1.0, norm_mode="norm")]], ids=range(4))
def test_without_a_raw_oracle_there_is_no_verdict(rows: list[dict[str, Any]]) -> None:
    assert summarise(rows).verdicts == []
