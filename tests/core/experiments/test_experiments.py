"""The experiments' plans and summaries: what they share, what they refuse, and what their numbers are said to mean."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.errors import SpecError
from creditgrid.core.experiment import Experiment, Summary, Verdict
from creditgrid.core.experiments import credit_recovery, dynamics, exploitability, linesearch, snapshot_time
from creditgrid.core.experiments.registry import registry
from creditgrid.core.experiments.stages import STAGES, step_batches
from creditgrid.core.rows import columns
from creditgrid.core.spec.model import parse
from creditgrid.core.spec.validation import validate
from creditgrid.core.task import Task

DATASET = DatasetRef("pictures", "d" * 64, 50_000, 100, 10, (3, 32, 32), {"package": "parquet", "path": "/p"})
MODULES = (credit_recovery, dynamics, exploitability, linesearch, snapshot_time)
EXPERIMENTS = {module.EXPERIMENT.name: registry().experiments[module.EXPERIMENT.name] for module in MODULES}
NEEDED: dict[str, Any] = {"dataset": "pictures", "method": "vec", "eta": 0.1}
T975 = {2: 12.706, 3: 4.303, 4: 3.182}  # Student's t by the number of values


def defaults(experiment: Experiment) -> dict[str, Any]:
    required = {field for field, info in experiment.params.model_fields.items() if info.is_required()}
    return {field: NEEDED[field] for field in required}


def planned(name: str, **values: Any) -> tuple[Task, dict[str, list[Task]]]:
    """The measure task of a cell, and its ancestors by kind."""
    experiment = EXPERIMENTS[name]
    params = experiment.params(**{**defaults(experiment), **values})
    measure, ancestors = experiment.cell(params, DATASET)
    below = list(dict.fromkeys(ancestors))  # one that plays two roles may be listed twice
    place = {task.key: number for number, task in enumerate(below)}
    for task in below:  # parents come first
        assert all(place[key] < place[task.key] for key in task.parents.values())
    assert set(measure.parents.values()) <= set(place)
    kinds: dict[str, list[Task]] = {}
    for task in below:
        kinds.setdefault(task.kind, []).append(task)
    return measure, kinds


def keys(name: str, **values: Any) -> dict[str, set[str]]:
    return {kind: {task.key for task in tasks} for kind, tasks in planned(name, **values)[1].items()}


def faults(name: str, fixed: Mapping[str, Any], **document: Any) -> dict[str, str]:
    experiment = EXPERIMENTS[name]
    spec = {"name": "n", "experiment": name, "fixed": {**defaults(experiment), **fixed}, **document}
    kinds = [kind.name for kind in (*STAGES, experiment.measure)]
    try:
        list(validate(parse(spec), experiment, kinds).cells({"pictures": DATASET}))
    except SpecError as error:
        return {fault.pointer: fault.detail for fault in error.faults}
    return {}


# -- declarations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_charts_show_columns_that_rows_have(name: str) -> None:
    experiment = EXPERIMENTS[name]
    known = set(columns(experiment))
    for chart in experiment.charts:
        shown = [*chart.x.columns, *chart.series, *(c for measure in chart.measures for c in measure.columns)]
        assert set(shown) <= known
        assert all(experiment.columns[c].type == "float64" for m in chart.measures for c in m.columns)
    assert len({chart.name for chart in experiment.charts}) == len(experiment.charts) > 0


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_summary_of_no_rows_is_empty(name: str) -> None:
    summary = EXPERIMENTS[name].summarise([])
    assert (list(summary.rows), list(summary.verdicts)) == ([], [])


# -- what goes together --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fixed", "pointers"),
    [
        ({}, {}),
        ({"rule": "inner_product"}, {}),
        ({"rule": "target_shift", "kappa": 0.1}, {}),
        ({"rule": "target_shift"}, {"/fixed": "the rule target_shift needs its kappa: The shift κ, such as 0.01"}),
        (
            {"rule": "target_shift", "kappa": None},
            {"/fixed/kappa": "the rule target_shift needs its kappa: The shift κ, such as 0.01"},
        ),
        (
            {"rule": "cosine", "kappa": 0.1},
            {"/fixed/kappa": "kappa is a parameter of the rule target_shift, and this cell's rule is cosine"},
        ),
        (
            {"kappa": 0.1},
            {"/fixed/kappa": "kappa is a parameter of the rule target_shift, and this cell's rule is inner_product"},
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["exploitability", "linesearch"])
def test_kappa_is_of_target_shift_alone(name: str, fixed: dict[str, Any], pointers: dict[str, str]) -> None:
    found = faults(name, fixed)
    assert found.keys() == pointers.keys()
    assert all(found[pointer].startswith(detail) for pointer, detail in pointers.items())


def test_faults_of_kappa_and_rule_on_axes_name_their_place() -> None:
    found = faults("exploitability", {}, axes={"rule": ["inner_product", "target_shift"], "kappa": [None, 0.1]})
    assert set(found) == {"/axes/kappa/0", "/axes/kappa/1"}
    together = {"axes": {"rule": ["inner_product", "target_shift"], "kappa": [None, 0.1]}, "zip": [["rule", "kappa"]]}
    assert faults("exploitability", {}, **together) == {}


@pytest.mark.parametrize("name", ["linesearch", "snapshot_time"])
def test_two_last_blocks_of_one_are_refused(name: str) -> None:
    assert faults(name, {"num_blocks": 2, "update_range": "last2"}) == {}
    assert faults(name, {"num_blocks": 1, "update_range": "last1"}) == {}
    found = faults(name, {"num_blocks": 1, "update_range": "last2"})
    assert found == {"/fixed/update_range": "update_range last2 needs num_blocks of at least 2"}


@pytest.mark.parametrize(
    ("epochs", "every", "logged"),
    [
        (0, 1, [0]),
        (3, 1, [0, 1, 2, 3]),
        (4, 2, [0, 2, 4]),
        (5, 2, [0, 2, 4, 5]),
        (5, 5, [0, 5]),
        (5, 6, [0, 5]),
        (5, 100, [0, 5]),
    ],
)
def test_dynamics_logs_every_so_many_epochs_and_the_last(epochs: int, every: int, logged: list[int]) -> None:
    measure, kinds = planned("dynamics", train_epochs=epochs, logs_every=every)
    assert [task.params["epoch"] for task in kinds["train"]] == logged
    assert {role for role in measure.parents if role != "data"} == {f"epoch_{epoch}" for epoch in logged}
    assert len({task.group for task in kinds["train"]}) == 1  # one call computes them all


def test_dynamics_of_too_many_epochs_asks_to_thin_them() -> None:
    assert faults("dynamics", {"train_epochs": 999}) == {}
    found = faults("dynamics", {"train_epochs": 1000})
    assert found == {"/fixed": "logs_every 1 logs 1,001 of 1,000 epochs, and a cell logs at most 1,000"}
    assert faults("dynamics", {"train_epochs": 1000, "logs_every": 2}) == {}
    assert set(faults("dynamics", {"train_epochs": 9000, "logs_every": 2})) == {"/fixed/logs_every"}


@pytest.mark.parametrize("text", ["none", None])
def test_no_clamp_may_be_said_in_two_ways(text: str | None) -> None:
    params = EXPERIMENTS["exploitability"].params(dataset="pictures", method="dfa", clamp=text)  # type: ignore[arg-type]
    assert params.clamp is None
    assert EXPERIMENTS["exploitability"].params(dataset="pictures", method="dfa").clamp == 1.0


# -- what is shared ------------------------------------------------------------------------------------------------

METHODS = ("oracle_bp", "dfa", "vec", "scalar_cb", "state_bridge")


@pytest.mark.parametrize("method", METHODS)
def test_credit_recovery_after_a_line_search_measures_and_computes_nothing_else(method: str) -> None:
    for changes in ({}, {"seed": 3}, {"checkpoint_epoch": 5}, {"train_rule": "dfa"}, {"probe_seed": 9}):
        before, after = keys("linesearch", method=method, **changes), keys("credit_recovery", method=method, **changes)
        assert before == after


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["snapshot_time", "exploitability"])
def test_the_other_experiments_share_all_but_the_probe(name: str, method: str) -> None:
    before, after = keys("linesearch", method=method), keys(name, method=method)
    assert {kind: found for kind, found in before.items() if kind != "probe"} == {
        kind: found for kind, found in after.items() if kind != "probe"
    }
    assert before["probe"] != after["probe"]  # it holds the steps' batches too


def test_dynamics_shares_its_checkpoints_with_whatever_else_probes_that_run() -> None:
    for run in ({}, {"train_rule": "dfa"}, {"train_rule": "dfa", "random_targets": True}, {"residual_add": False}):
        looked_at = keys("dynamics", train_epochs=20, logs_every=5, **run)["train"]
        assert len(looked_at) == 5
        for name, epoch in itertools.product(("linesearch", "credit_recovery"), (0, 5, 20, None)):
            assert keys(name, train_epochs=20, checkpoint_epoch=epoch, **run)["train"] <= looked_at
        assert not keys("linesearch", train_epochs=20, checkpoint_epoch=7, **run)["train"] & looked_at
        assert not keys("linesearch", train_epochs=20, seed=1, **run)["train"] & looked_at


def test_a_run_by_dfa_depends_on_the_feedback_of_its_own_seed_and_not_of_the_probe_s() -> None:
    _, kinds = planned("linesearch", method="dfa", train_rule="dfa", seed=3, probe_seed=9)
    assert [task.params["seed"] for task in kinds["feedback"]] == [3, 9]
    (train,) = kinds["train"]
    assert train.parents["feedback"] == kinds["feedback"][0].key
    measure, _ = planned("linesearch", method="dfa", train_rule="dfa", seed=3, probe_seed=9)
    assert measure.parents["feedback"] == kinds["feedback"][1].key
    looked_at, below = planned("dynamics", train_rule="dfa", seed=3, train_epochs=2)
    assert looked_at.parents["feedback"] == kinds["feedback"][0].key == below["feedback"][0].key
    assert "feedback" not in planned("dynamics", train_epochs=2)[0].parents


def test_rollouts_of_different_lengths_share_one_probe() -> None:
    probes = {k: keys("exploitability", k=k)["probe"] for k in (1, 5, 8, 9, 16, 17)}
    assert probes[1] == probes[5] == probes[8] != probes[9] == probes[16] != probes[17]
    assert keys("exploitability", step_batch_size=128)["probe"] == probes[5]
    assert keys("exploitability", step_batch_size=64)["probe"] != probes[5]


@pytest.mark.parametrize(
    ("images", "steps", "size", "held"),
    [
        (5000, 1, 100, 8),
        (5000, 5, 100, 8),
        (5000, 8, 100, 8),
        (5000, 9, 100, 16),
        (5000, 16, 100, 16),
        (5000, 17, 100, 32),
        (5000, 33, 100, 50),  # as far as the images reach
        (5000, 50, 100, 50),
        (299, 2, 100, 2),
        (399, 2, 100, 3),
        (5000, 51, 100, 51),  # more than there are: the plan refuses it
    ],
)
def test_a_probe_holds_step_batches_rounded_up_as_far_as_the_images_reach(
    images: int, steps: int, size: int, held: int
) -> None:
    assert step_batches(replace(DATASET, num_train=images), steps, size) == held


@pytest.mark.parametrize(
    ("name", "within", "across"),
    [
        (
            "exploitability",
            [
                {"method": "dfa"},
                {"eta": 0.5},
                {"k": 8},
                {"rule": "target_shift", "kappa": 0.1},
                {"eval": "same"},
                {"clamp": None},
                {"step_noise": 0.1},
            ],
            [{"k": 9}, {"step_batch_size": 64}, {"seed": 1}, {"probe_seed": 1}, {"checkpoint_epoch": 3}],
        ),
        (
            "snapshot_time",
            [{"method": "dfa"}, {"eta": 0.5}, {"update_range": "all"}, {"extra_batches": 8}],
            [{"extra_batches": 9}, {"seed": 1}, {"probe_seed": 1}, {"checkpoint_epoch": 3}],
        ),
        (
            "credit_recovery",
            [{"method": "dfa"}, {"cb_source": "delta_L"}, {"fit_epochs": 3}],
            [{"seed": 1}, {"probe_seed": 1}, {"checkpoint_epoch": 3}, {"batch_size": 64}],
        ),
    ],
)
def test_cells_of_one_checkpoint_and_probe_are_one_call(
    name: str, within: list[dict[str, Any]], across: list[dict[str, Any]]
) -> None:
    group = planned(name)[0].group
    assert {planned(name, **changes)[0].group for changes in within} == {group}
    apart = [planned(name, **changes)[0].group for changes in across]
    assert len({group, *apart}) == len(across) + 1


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_parameter_of_its_own_but_the_dataset_s_name_is_in_the_cell_s_key(name: str) -> None:
    measure, _ = planned(name)
    params = EXPERIMENTS[name].params
    own = {"fit_epochs", "fit_lr", "vec_directions", "vec_eps"} & params.owned
    assert set(measure.params) == (set(params.model_fields) - params.owned - {"dataset", "network"}) | own


@pytest.mark.parametrize("name", ["linesearch", "snapshot_time", "exploitability", "credit_recovery"])
def test_networks_with_and_without_their_skip_are_never_one_call(name: str) -> None:
    imported = {"checkpoint": "L4-d256-D3072-C10-" + "a" * 64}  # a state dict does not say
    groups = {planned(name, residual_add=residual, **imported)[0].group for residual in (True, False)}
    assert len(groups) == 2
    assert len({key for r in (True, False) for key in keys(name, residual_add=r, **imported)["fit"]}) == 2


# -- summaries -----------------------------------------------------------------------------------------------------


def row(name: str, **values: Any) -> dict[str, Any]:
    """A row with defaults for every parameter, and 0 for what was measured."""
    experiment = EXPERIMENTS[name]
    params = experiment.params(**defaults(experiment)).model_dump()
    measured = {c: 0 if column.type == "int64" else 0.0 for c, column in experiment.columns.items()}
    assert values.keys() <= params.keys() | measured.keys() | {"diverged"}
    return {**params, **measured, "cell": "c", "diverged": False, **values}


def assert_statistics(line: Mapping[str, Any], metric: str, values: Sequence[float]) -> None:
    assert line[metric] == pytest.approx(np.mean(values), rel=1e-12)
    assert line[f"{metric}_std"] == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    expected = T975[len(values)] * np.std(values, ddof=1) / math.sqrt(len(values))
    assert line[f"{metric}_ci95"] == pytest.approx(expected, rel=3e-4)
    assert line[f"{metric}_n"] == len(values)


def shown(summary: Summary) -> list[tuple[Any, ...]]:
    return [tuple(line[c] for c in summary.columns) for line in summary.rows]


# -- snapshot_time -------------------------------------------------------------------------------------------------


def snapshots(changes: Mapping[int | None, float | None], **values: Any) -> list[dict[str, Any]]:
    """vec's rows with these held-out changes by epoch."""
    return [
        row(
            "snapshot_time", **{"method": "vec", "checkpoint_epoch": e, "dl_held_1": c, "diverged": c is None, **values}
        )
        for e, c in changes.items()
    ]


def verdicts(name: str, rows: Iterable[Mapping[str, Any]]) -> list[Verdict]:
    return list(EXPERIMENTS[name].summarise(list(rows)).verdicts)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({5: -1.0, 20: -0.1, 100: 0.3}, "late-snapshot artifact"),
        ({5: -1.0, 50: 1e-9}, "late-snapshot artifact"),
        ({20: 0.0, 100: 0.3}, "late-snapshot artifact"),  # 0 is no failure
        ({5: -1.0, 30: -1.0, 100: 0.3}, "late-snapshot artifact"),
        ({5: 0.1, 20: 0.1, 100: 0.3}, "across-training failure"),
        ({5: -0.1, 20: 0.1, 50: 0.3}, "across-training failure"),
        ({0: 0.1, 100: 0.3}, "across-training failure"),
        ({5: 0.1, 20: 0.1, 100: -0.3}, "need more data"),  # early alone
        ({5: -0.1, 20: -0.1, 100: -0.3}, "need more data"),  # nowhere
        ({5: -0.1, 30: 0.1, 100: 0.3}, "need more data"),  # in between too
        ({21: -0.1, 100: 0.3}, "need more data"),  # no early snapshot to compare with
        ({100: 0.3}, "need more data"),
        ({5: 0.3}, "need more data"),
        ({5: -0.3, 49: 0.1}, "need more data"),  # 49 is not late
    ],
    ids=str,
)
def test_verdict_on_snapshots(changes: dict[int | None, float | None], name: str) -> None:
    (verdict,) = verdicts("snapshot_time", snapshots(changes))
    assert verdict.name == name
    assert verdict.numbers == {f"dl_held_1_epoch_{epoch}": change for epoch, change in changes.items()}
    for epoch, change in changes.items():
        assert f"{change:+.3g} at epoch {epoch}" in verdict.text


def test_the_verdict_is_on_vec_s_means_over_seeds() -> None:
    rows = [
        *snapshots({5: -1.0, 100: 0.4}, seed=1),
        *snapshots({5: 0.5, 100: -0.1}, seed=2),
        *snapshots({5: 9.0, 100: -9.0}, method="dfa"),
    ]
    (verdict,) = verdicts("snapshot_time", rows)
    assert verdict.name == "late-snapshot artifact"
    assert verdict.numbers == pytest.approx({"dl_held_1_epoch_5": -0.25, "dl_held_1_epoch_100": 0.15})


def test_a_snapshot_that_is_not_named_by_its_epoch_is_the_last_one() -> None:
    rows = [*snapshots({5: -1.0}, seed=1), *snapshots({None: 0.5}, seed=1), *snapshots({100: 1.5}, seed=2)]
    summary = EXPERIMENTS["snapshot_time"].summarise(rows)
    assert [(line["checkpoint_epoch"], line["n"]) for line in summary.rows] == [(5, 1), (100, 2)]
    assert_statistics(summary.rows[1], "dl_held_1", [0.5, 1.5])
    assert summary.verdicts[0].name == "late-snapshot artifact"
    (short,) = verdicts("snapshot_time", snapshots({None: 0.5}, train_epochs=10))
    assert short.numbers == {"dl_held_1_epoch_10": 0.5}


@pytest.mark.parametrize(
    "rows",
    [
        snapshots({5: -1.0, 100: 1.0}, method="dfa"),
        snapshots({5: None, 100: None}),
        snapshots({None: 0.5}, checkpoint="L4-d256-D3072-C10-" + "a" * 64),  # of no known age
    ],
    ids=["no vec", "diverged", "imported"],
)
def test_without_a_dated_vec_there_is_no_verdict(rows: list[dict[str, Any]]) -> None:
    assert verdicts("snapshot_time", rows) == []


def test_each_setting_of_what_else_varies_has_its_own_verdict() -> None:
    rows = [*snapshots({5: -1.0, 100: 1.0}, num_blocks=4), *snapshots({5: 1.0, 100: 1.0}, num_blocks=8)]
    found = verdicts("snapshot_time", rows)
    assert [(v.name, v.text.split(":")[0]) for v in found] == [
        ("late-snapshot artifact", "num_blocks 4"),
        ("across-training failure", "num_blocks 8"),
    ]


def test_snapshots_are_averaged_over_seeds_by_method_and_epoch() -> None:
    purs: list[float | None] = [None, 0.5, 1.5]
    rows = [
        row("snapshot_time", method=method, checkpoint_epoch=epoch, seed=seed, pur_1=purs[seed], dl_same_5=epoch * seed)
        for method, epoch, seed in itertools.product(("vec", "dfa"), (5, 100), range(3))
    ]
    summary = EXPERIMENTS["snapshot_time"].summarise(rows)
    assert [(line["method"], line["checkpoint_epoch"], line["n"]) for line in summary.rows] == [
        (m, e, 3) for m in ("dfa", "vec") for e in (5, 100)
    ]
    for line in summary.rows:
        assert_statistics(line, "pur_1", [0.5, 1.5])
        assert_statistics(line, "dl_same_5", [line["checkpoint_epoch"] * seed for seed in range(3)])
    assert len(shown(summary)) == 4


# -- credit_recovery -----------------------------------------------------------------------------------------------


def recovered(method: str, rho: float | None, gamma: float, **values: Any) -> list[dict[str, Any]]:
    """Four layers' rows of one cell; every one of them has the means."""
    return [
        row(
            "credit_recovery",
            **{
                "method": method,
                "layer": layer,
                "rho": 99.0,  # not what a summary or a verdict looks at
                "gamma": 99.0,
                "rho_mean": rho,
                "gamma_mean": gamma,
                "diverged": rho is None,
                **values,
            },
        )
        for layer in range(4)
    ]


@pytest.mark.parametrize(
    ("scalar", "dfa", "name"),
    [
        ((0.5, 0.5), (0.1, 0.1), "positive"),
        ((0.13, 0.11), (0.1, 0.1), "positive"),
        ((0.0, 0.01), (-0.03, 0.0), "positive"),  # against dfa, whatever the sign
        ((0.115, 0.5), (0.1, 0.1), "marginal"),  # not by the margin
        ((0.5, 0.1), (0.1, 0.1), "marginal"),  # gamma must be more, not as much
        ((0.5, 0.05), (0.1, 0.1), "marginal"),
        ((0.021, 0.0), (0.9, 0.9), "marginal"),
        ((0.02, 0.0), (0.9, 0.9), "negative"),
        ((-0.5, 0.9), (0.1, 0.1), "negative"),
        ((0.0, 0.0), (0.0, 0.0), "negative"),
    ],
    ids=str,
)
def test_verdict_on_recovery(scalar: tuple[float, float], dfa: tuple[float, float], name: str) -> None:
    (verdict,) = verdicts("credit_recovery", [*recovered("scalar_cb", *scalar), *recovered("dfa", *dfa)])
    assert verdict.name == name
    assert verdict.numbers == {
        "scalar_cb_best_rho": scalar[0],
        "scalar_cb_best_gamma": scalar[1],
        "dfa_rho": dfa[0],
        "dfa_gamma": dfa[1],
        "margin": 0.02,
    }
    assert f"rho is {scalar[0]:.3g}" in verdict.text


def test_the_best_of_both_signals_counts_and_each_by_itself() -> None:
    rows = [
        *recovered("scalar_cb", 0.5, 0.0, cb_source="e_T"),
        *recovered("scalar_cb", 0.0, 0.4, cb_source="delta_L"),
        *recovered("dfa", 0.1, 0.1),
        *recovered("vec", 9.0, 9.0),
        *recovered("oracle_bp", 1.0, 1.0),
    ]
    verdict, of_vec = verdicts("credit_recovery", rows)  # the oracle is not fitted, and dfa is what they should exceed
    assert verdict.name == of_vec.name == "positive"
    assert (verdict.numbers["scalar_cb_best_rho"], verdict.numbers["scalar_cb_best_gamma"]) == (0.5, 0.4)
    assert (of_vec.numbers["vec_best_rho"], of_vec.numbers["dfa_rho"]) == (9.0, 0.1)
    assert of_vec.text.startswith("vec's best rho is 9")


def test_the_verdict_is_on_means_over_seeds() -> None:
    rows = [
        *recovered("scalar_cb", 0.9, 0.9, seed=1),
        *recovered("scalar_cb", -0.9, -0.9, seed=2),
        *recovered("dfa", 0.1, 0.1, seed=1),
        *recovered("dfa", -0.1, -0.1, seed=2),
    ]
    (verdict,) = verdicts("credit_recovery", rows)
    assert verdict.name == "negative"
    assert verdict.numbers["scalar_cb_best_rho"] == 0.0


def test_parameters_of_a_method_are_columns_only_if_they_vary_within_it() -> None:
    rows = [
        *recovered("scalar_cb", 0.5, 0.5, cb_source="e_T", fit_epochs=100),
        *recovered("vec", 0.1, 0.1, fit_epochs=60),
    ]
    assert not {"cb_source", "fit_epochs"} & set(EXPERIMENTS["credit_recovery"].summarise(rows).columns)
    rows += recovered("vec", 0.1, 0.1, fit_epochs=100)
    assert "fit_epochs" in EXPERIMENTS["credit_recovery"].summarise(rows).columns


@pytest.mark.parametrize(
    "rows",
    [
        recovered("scalar_cb", 0.5, 0.5),
        recovered("dfa", 0.5, 0.5),
        recovered("vec", 0.5, 0.5),
        [*recovered("scalar_cb", None, 0.5), *recovered("dfa", 0.1, 0.1)],
    ],
    ids=["no dfa", "no scalar_cb", "neither", "diverged"],
)
def test_without_both_there_is_no_verdict(rows: list[dict[str, Any]]) -> None:
    assert verdicts("credit_recovery", rows) == []


def test_each_checkpoint_has_its_own_verdict_on_recovery() -> None:
    rows = [
        *recovered("scalar_cb", 0.5, 0.5, checkpoint_epoch=5),
        *recovered("dfa", 0.1, 0.1, checkpoint_epoch=5),
        *recovered("scalar_cb", 0.0, 0.0, checkpoint_epoch=20),
        *recovered("dfa", 0.1, 0.1, checkpoint_epoch=20),
        *recovered("dfa", 0.1, 0.1, checkpoint_epoch=100),
    ]
    found = verdicts("credit_recovery", rows)
    assert [(v.name, v.text.split(":")[0]) for v in found] == [
        ("positive", "checkpoint_epoch 5"),
        ("negative", "checkpoint_epoch 20"),
    ]


def test_recovery_is_averaged_over_seeds_and_counts_each_cell_once() -> None:
    rows = [
        r
        for source, seed in itertools.product(("e_T", "delta_L"), range(3))
        for r in recovered("scalar_cb", 0.1 * seed, 0.2 * seed, cb_source=source, seed=seed, pred_error_mean=None)
    ]
    summary = EXPERIMENTS["credit_recovery"].summarise(rows)
    layers = [line["layer"] for line in summary.rows if line["cb_source"] == "e_T"]
    assert layers == [None, *sorted({r["layer"] for r in rows})]
    whole = [line for line in summary.rows if line["layer"] is None]
    assert [(line["method"], line["cb_source"], line["n"]) for line in whole] == [
        ("scalar_cb", "delta_L", 3),
        ("scalar_cb", "e_T", 3),
    ]
    for line in whole:
        assert line["rho"] == line["rho_mean"]
        assert_statistics(line, "rho_mean", [0.0, 0.1, 0.2])
        assert_statistics(line, "gamma_mean", [0.0, 0.2, 0.4])
        assert line["pred_error_mean"] is None
    for line in summary.rows:
        if line["layer"] is not None:  # each layer's own metric, not the means that its rows carry
            assert_statistics(line, "rho", [99.0] * 3)
    assert len(shown(summary)) == 2 * len(layers)


def test_methods_with_estimators_of_their_own_settings_share_a_verdict() -> None:
    """As in a run that scales each fit's epochs: dfa has none."""
    rows = [*recovered("scalar_cb", 0.5, 0.5, fit_epochs=2, cb_lambda=0.3), *recovered("dfa", 0.1, 0.1)]
    (verdict,) = verdicts("credit_recovery", rows)
    assert verdict.name == "positive"
    assert "fit_epochs" not in verdict.text


# -- exploitability ------------------------------------------------------------------------------------------------


def test_exploitability_is_averaged_over_seeds_by_method_rule_and_kappa() -> None:
    rules: list[tuple[str, float | None]] = [("inner_product", None), ("target_shift", 1.0), ("target_shift", 0.1)]
    rows = [
        row("exploitability", method=m, rule=rule, kappa=kappa, seed=seed, probe_seed=seed, delta_loss=seed * 0.1)
        for m, (rule, kappa), seed in itertools.product(("vec", "dfa"), rules, range(4))
    ]
    summary = EXPERIMENTS["exploitability"].summarise(rows)
    assert [(line["method"], line["rule"], line["kappa"], line["n"]) for line in summary.rows] == [
        (m, *rule, 4)
        for m in ("dfa", "vec")
        for rule in (("inner_product", None), ("target_shift", 0.1), ("target_shift", 1.0))
    ]
    for line in summary.rows:
        assert_statistics(line, "delta_loss", [0.0, 0.1, 0.2, 0.3])
    assert "kappa" in summary.columns
    assert "eta" not in summary.columns
    assert list(summary.verdicts) == []
    assert len(shown(summary)) == 6


def test_exploitability_has_lines_for_the_other_axes_and_counts_what_diverged() -> None:
    rows = [
        row("exploitability", eta=eta, seed=seed, delta_loss=None if lost else eta, diverged=lost)
        for eta, seed, lost in ((0.1, 1, False), (0.1, 2, True), (0.2, 1, False), (0.2, 2, False))
    ]
    summary = EXPERIMENTS["exploitability"].summarise(rows)
    assert "eta" in summary.columns
    assert [(line["eta"], line["n"], line["diverged"], line["delta_loss"]) for line in summary.rows] == [
        (0.1, 1, 1, 0.1),
        (0.2, 2, 0, 0.2),
    ]


# -- dynamics ------------------------------------------------------------------------------------------------------


def test_dynamics_shows_the_ends_of_each_run() -> None:
    ends = {"bp": 3, "dfa": 2}
    rows = [
        row("dynamics", train_rule=rule, seed=seed, epoch=epoch, layer=layer, h_norm=100.0 * epoch + layer + 0.1 * seed)
        for rule, last in ends.items()
        for seed, epoch, layer in itertools.product(range(3), range(last + 1), range(5))
    ]
    summary = EXPERIMENTS["dynamics"].summarise(rows)
    assert [(line["train_rule"], line["epoch"], line["layer"]) for line in summary.rows] == [
        (rule, epoch, layer) for rule, last in ends.items() for epoch in (0, last) for layer in range(5)
    ]
    for line in summary.rows:
        at = 100.0 * line["epoch"] + line["layer"]
        assert_statistics(line, "h_norm", [at, at + 0.1, at + 0.2])
    assert len(shown(summary)) == 20


def test_each_run_has_its_own_layers() -> None:
    rows = [
        row("dynamics", num_blocks=blocks, epoch=epoch, layer=layer)
        for blocks in (2, 4)
        for epoch, layer in itertools.product((0, 1), range(blocks + 1))
    ]
    found = [
        (line["num_blocks"], line["epoch"], line["layer"]) for line in EXPERIMENTS["dynamics"].summarise(rows).rows
    ]
    assert found == [(blocks, epoch, layer) for blocks in (2, 4) for epoch in (0, 1) for layer in range(blocks + 1)]
