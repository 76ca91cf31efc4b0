"""Rows of existing sweeps: the published settings where a sweep has them, else the only ones, never a mixture."""

from __future__ import annotations

from typing import Any

import pytest

from creditgrid.client.errors import BadSetting
from creditgrid.client.reproduce.runs import Choice
from creditgrid.client.reproduce.selection import Selection, select
from creditgrid.core.experiments.registry import registry

Row = dict[str, Any]
EXPERIMENTS = {name: registry().experiments[name] for name in ("linesearch", "exploitability", "credit_recovery")}
ETAS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
NEW = {"kind_version": 2, "parent_versions": '{"estimator":2}'}


def row(experiment: str = "exploitability", method: str = "dfa", **values: Any) -> Row:
    """A row of a new installation at the published settings, apart from ``values``."""
    declared = EXPERIMENTS[experiment]
    defaults = {name: field.default for name, field in declared.params.model_fields.items()}
    measured = dict.fromkeys(declared.columns, 0.5)
    layer = {"layer": 0} if experiment == "credit_recovery" else {}
    made = {**defaults, **measured, **layer, "experiment": experiment, "method": method, "dataset": "cifar10", **NEW}
    made |= values
    return {"cell": str(sorted((name, str(value)) for name, value in made.items())), **made}


def chosen(rows: list[Row], **choice: Any) -> Selection:
    return select(rows[0]["experiment"], rows, Choice(**choice))


def test_the_published_value_is_taken_where_an_axis_has_it() -> None:
    wanted = [row(method=method, seed=seed) for method in ("dfa", "vec") for seed in (42, 43)]
    others = [
        *(row(method="vec", **{name: value}) for name, value in {"step_noise": 0.1, "k": 10, "eta": 3e-3}.items()),
        *(row(train_epochs=20, dataset=name) for name in ("cifar10", "digits")),
        row(eval="same"),
        row(norm_mode="raw"),
        row(clamp=None),
        row(checkpoint_epoch=20),
        row(method="state_bridge"),
        row(rule="cosine"),
        row(method="vec", fit_epochs=5),
    ]
    found = chosen(others + wanted)
    assert sorted(one["cell"] for one in found.rows) == sorted(one["cell"] for one in wanted)
    assert found.seeds == [42, 43]
    assert found.conditions == [
        "exploitability: cifar10, 100 epochs of training, of fitting 60 for vec; "
        "seeds 42 to 43 (mean ± 95 % half-width)"
    ]


def test_other_settings_are_taken_where_all_rows_agree_and_are_named() -> None:
    values = {"dataset": "/data/mine", "train_epochs": 10, "d_hidden": 64, "step_noise": 0.1}
    rows = [row(method=method, seed=7, fit_epochs=3, cb_sigma=0.2, **values) for method in ("vec", "scalar_cb")]
    found = chosen(rows)
    assert len(found.rows) == 2
    assert found.conditions == [
        "exploitability: /data/mine, 10 epochs of training, of fitting 3 for vec and 3 for scalar_cb; seed 7",
        "exploitability has d_hidden 64, published 256",
        "exploitability has step_noise 0.1, published 0",
        "scalar_cb in exploitability has cb_sigma 0.2, published 0.05",
    ]


def test_several_settings_without_the_published_one_are_refused_with_advice() -> None:
    with pytest.raises(
        BadSetting, match="have dataset a, b, and none has the published cifar10: choose one with --dat"
    ):
        chosen([row(dataset="a"), row(dataset="b")])
    with pytest.raises(BadSetting, match=r"have step_noise 0.1, 0.2, and none .* 0: give sweeps that have one of them"):
        chosen([row(step_noise=0.1), row(step_noise=0.2)])
    with pytest.raises(
        BadSetting, match="rows of vec in exploitability have fit_epochs 3, 5, and none has the published 60"
    ):
        chosen([row(method="vec", fit_epochs=3), row(method="vec", fit_epochs=5)])
    with pytest.raises(BadSetting, match="have probe_seed 1, 2, and none has the published null"):
        chosen([row(probe_seed=1), row(probe_seed=2)])


def test_a_choice_is_made_before_anything_else() -> None:
    rows = [
        row(method="vec", dataset=dataset, train_epochs=epochs, fit_epochs=fits, seed=seed)
        for dataset in ("a", "b")
        for epochs in (100, 5)
        for fits in (2, 60)
        for seed in (42, 43, 44)
    ]
    found = chosen(rows, dataset="b", epochs=5, fit_epochs=2, seeds=[42, 43, 44, 45])
    assert {(r["dataset"], r["train_epochs"], r["fit_epochs"]) for r in found.rows} == {("b", 5, 2)}
    assert found.seeds == [42, 43, 44, 45], "a seed that was asked for and has no row is missing"
    assert len(found.rows) == 3
    dfa = row(dataset="b", train_epochs=5)
    assert dfa in chosen([*rows, dfa], dataset="b", epochs=5, fit_epochs=2).rows, "dfa has no fit"


def test_a_parameter_of_another_method_makes_no_difference() -> None:
    rows = [row(method="dfa", vec_eps=eps, fit_epochs=n) for eps in (1e-2, 1e-4) for n in (1, 2)]
    assert len(chosen(rows).rows) == 1


def test_the_last_checkpoint_may_be_named_or_not() -> None:
    rows = [row(checkpoint_epoch=None), row(checkpoint_epoch=100), row(checkpoint_epoch=5)]
    assert [one["checkpoint_epoch"] in (None, 100) for one in chosen(rows).rows] == [True]


def test_of_two_versions_the_newer_is_taken_and_an_old_one_is_named() -> None:
    old = row("credit_recovery", "vec", kind_version=None, parent_versions=None)
    over_old = row("credit_recovery", "vec", parent_versions='{"estimator":1}')
    new = row("credit_recovery", "vec")
    assert list(chosen([old, over_old]).rows) == [over_old]
    assert list(chosen([new, old, over_old]).rows) == [new]
    assert len(chosen([new]).conditions) == 1
    assert chosen([old]).conditions[1:] == [
        "credit_recovery was measured by version 1, which is now 2: see the CHANGELOG",
        "vec was fitted by version 1, which is now 2: see the CHANGELOG",
    ]
    assert chosen([over_old]).conditions[1:] == ["vec was fitted by version 1, which is now 2: see the CHANGELOG"]


def test_the_published_step_sizes_are_compared_where_all_are_there() -> None:
    more = [row("linesearch", eta=eta) for eta in (*ETAS, 3e-2)]
    assert tuple(chosen(more).etas) == ETAS
    fewer = chosen([row("linesearch", eta=eta) for eta in (1e-4, 3e-2)])
    assert fewer.etas == [1e-4, 3e-2]
    assert fewer.conditions[-1] == "the best of 2 step sizes: 0.0001, 0.03"


def test_no_row_at_all() -> None:
    found = select("exploitability", [], Choice())
    assert (list(found.rows), list(found.seeds)) == ([], [42])
    assert found.conditions == ["exploitability: no row at the end of a training by a published method"]
