"""Choices: parameters belong to the unit that a cell chooses, and to no other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import pytest
from pydantic import Field

from creditgrid.core.datasets import DatasetRef
from creditgrid.core.errors import SpecError
from creditgrid.core.experiments.linesearch import EXPERIMENT, LinesearchParams
from creditgrid.core.experiments.registry import registry, registry_with
from creditgrid.core.methods.vec import Vec
from creditgrid.core.spec.model import parse
from creditgrid.core.spec.validation import validate
from creditgrid.core.task import Task
from creditgrid.core.units.choice import composed
from creditgrid.core.units.known import installed
from creditgrid.core.units.method import Method

DATASET = DatasetRef("pictures", "d" * 64, 50_000, 100, 10, (3, 32, 32), {"package": "parquet", "path": "/p"})
SHA = "c" * 64


class Linear(Method):
    """A linear estimator."""

    name: ClassVar = "linear"
    ridge: float = Field(0.1, gt=0, description="Ridge.")
    solver: Literal["cholesky", "qr"] = Field("qr", description="Solver.")

    def fit(self, fitting: Any) -> Any:
        raise NotImplementedError


class Plain(Method):
    """A method without a fit."""

    name: ClassVar = "plain"
    version: ClassVar = 3


def cells(fixed: dict[str, Any], registered: Any = None, **document: Any) -> Iterator[Any]:
    experiment = (registered or registry()).experiment("linesearch")
    given = {"dataset": "pictures", **({} if "eta" in document.get("axes", {}) else {"eta": 0.1}), **fixed}
    spec = {"name": "n", "experiment": "linesearch", "fixed": given, **document}
    grid = validate(parse(spec), experiment, kinds=["measure"])
    return grid.cells({"pictures": DATASET})


def faults(fixed: dict[str, Any], **document: Any) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        list(cells(fixed, **document))
    return {fault.pointer: fault.detail for fault in caught.value.faults}


def named(params: Any, registered: Any = None) -> tuple[Task, dict[str, Task]]:
    task, below = (registered or registry()).experiment("linesearch").cell(params, DATASET)
    return task, {stage.kind: stage for stage in below}


# -- whose parameter it is -----------------------------------------------------------------------------------------


def test_what_no_cell_s_unit_owns_is_refused_whatever_its_value() -> None:
    detail = "cb_lambda is a parameter of the method scalar_cb, and this cell's method is vec: leave it out"
    assert faults({"method": "vec", "cb_lambda": 0.3}) == {"/fixed/cb_lambda": detail}
    assert faults({"method": "vec", "cb_lambda": 0.1}) == {"/fixed/cb_lambda": detail}, "also the default"
    assert faults({"method": "vec"}, axes={"cb_lambda": [0.1, 0.2]}) == {"/axes/cb_lambda": detail}
    found = faults({"cb_lambda": 0.1}, axes={"method": ["vec", "dfa"]})
    assert found["/fixed/cb_lambda"].startswith("cb_lambda is a parameter of the method scalar_cb, and the cells have ")


def test_a_fixed_parameter_is_of_the_cells_whose_unit_owns_it() -> None:
    found = list(cells({"cb_lambda": 0.3, "fit_epochs": 7}, axes={"method": ["dfa", "vec", "scalar_cb"]}))
    assert [(p.method, p.cb_lambda, p.fit_epochs) for p in found] == [
        ("dfa", None, None),
        ("vec", None, 7),
        ("scalar_cb", 0.3, 7),
    ]


def test_an_axis_may_give_null_and_the_default_to_others_and_nothing_else() -> None:
    zipped = {"zip": [["method", "cb_source"]]}
    for other in (None, "e_T"):
        axes = {"method": ["dfa", "scalar_cb", "scalar_cb"], "cb_source": [other, "e_T", "delta_L"]}
        found = list(cells({}, axes=axes, **zipped))
        assert [(p.method, p.cb_source) for p in found] == [
            ("dfa", None),
            ("scalar_cb", "e_T"),
            ("scalar_cb", "delta_L"),
        ]
    axes = {"method": ["dfa", "scalar_cb"], "cb_source": ["delta_L", "e_T"]}
    assert list(faults({}, axes=axes, **zipped)) == ["/axes/cb_source/0"]
    crossed = faults({}, axes={"method": ["vec", "scalar_cb"], "cb_lambda": [0.1, 0.2]})
    assert list(crossed) == ["/axes/cb_lambda/1"]


def test_an_included_cell_gives_its_own() -> None:
    included = {"method": "scalar_cb", "cb_lambda": 0.7, "eta": 0.2}
    found = list(cells({"method": "dfa"}, include=[included], axes={"eta": [0.1]}))
    assert [(p.method, p.cb_lambda) for p in found] == [("dfa", None), ("scalar_cb", 0.7)]
    assert list(faults({"method": "dfa"}, include=[{"method": "scalar_cb"}, {"method": "vec", "cb_lambda": 0.7}])) == [
        "/include/1/cb_lambda"
    ]


def test_null_is_the_default_and_has_its_key() -> None:
    keys = {named(p)[0].key for p in cells({"method": "vec"}, axes={"fit_epochs": [None, 60]})}
    assert len(keys) == 1


def test_bounds_hold_for_the_parameters_of_units() -> None:
    assert list(faults({"method": "vec", "vec_eps": 0.0})) == ["/fixed/vec_eps"]
    assert list(faults({"method": "vec"}, axes={"vec_directions": [4, 1.5]})) == ["/axes/vec_directions/1"]
    found = faults({"method": "vek"})
    assert "'dfa', 'oracle_bp', 'scalar_cb', 'state_bridge' or 'vec'" in found["/fixed/method"]


# -- the schema ----------------------------------------------------------------------------------------------------


def test_the_schema_says_whose_a_parameter_is_and_its_default() -> None:
    properties = registry().experiments["linesearch"].params.model_json_schema()["properties"]
    assert properties["cb_lambda"]["x-methods"] == ["scalar_cb"]
    assert properties["cb_lambda"]["default"] == 0.1
    assert properties["fit_epochs"]["x-methods"] == ["scalar_cb", "state_bridge", "vec"]
    assert "vec 60" in properties["fit_epochs"]["description"]
    assert properties["kappa"]["x-rules"] == ["target_shift"]
    json.dumps(properties)


def test_a_unit_s_parameter_may_not_be_one_of_the_experiment_s_own() -> None:
    class Greedy(Method):
        """Takes a name."""

        name: ClassVar = "greedy"
        eta: float = Field(0.1, description="Not a step size.")

    with pytest.raises(TypeError, match="'eta'"):
        composed(EXPERIMENT.params, installed().with_brought([Greedy], SHA))


def test_a_unit_s_parameter_may_not_have_the_name_of_a_version_in_keys() -> None:
    class Versioned(Method):
        """Its parameter would be replaced by the rule's version in the key."""

        name: ClassVar = "versioned"
        rule_version: int = Field(3, description="A number.")

    with pytest.raises(TypeError, match="'rule_version' of a unit has the name of something else in keys"):
        composed(EXPERIMENT.params, installed().with_brought([Versioned], SHA))


# -- brought units -------------------------------------------------------------------------------------------------


def test_a_brought_method_changes_no_key_but_its_own_and_is_in_calls_of_its_own() -> None:
    brought = registry_with(installed().with_brought([Linear, Plain], SHA))
    axes = {"method": ["dfa", "vec", "linear", "plain"]}
    found = {p.method: named(p, brought) for p in cells({}, brought, axes=axes)}
    for method, (task, below) in found.items():
        if method in ("dfa", "vec"):
            (before,) = cells({"method": method})
            assert task.key == named(before)[0].key
            assert "code" not in below
            continue
        assert task.parents["code"] == below["code"].key
        assert below["code"].params == {"sha256": SHA}
    assert len({task.group for task, _ in found.values()}) == 2
    linear, below = found["linear"]
    fit = below["fit"]
    assert (fit.params["estimator"], fit.params["ridge"], fit.params["solver"]) == ("linear", 0.1, "qr")
    assert fit.parents["code"] == below["code"].key
    assert (linear.params["ridge"], "vec_eps" in linear.params) == (0.1, False)
    other = registry_with(installed().with_brought([Linear, Plain], "d" * 64))
    (changed,) = cells({"method": "linear"}, other)
    assert named(changed, other)[0].key != linear.key
    assert named(changed, other)[1]["train"].key == below["train"].key


def test_the_version_of_an_installed_unit_is_in_the_keys_of_what_it_computes() -> None:
    units = installed()
    groups = {**units.groups, "methods": {**units.groups["methods"], "plain": Plain}}
    known = registry_with(type(units)(groups))
    (params,) = cells({"method": "plain"}, known)
    task = named(params, known)[0]
    assert task.params["method_version"] == 3
    assert known.experiment("linesearch").params.unit_versions(task.params) == {"method_version": 3}
    assert all("method_version" not in named(p)[0].params for p in cells({}, axes={"method": ["vec", "dfa"]}))


def test_settings_are_made_once_for_equal_values() -> None:
    found = list(cells({"method": "vec", "vec_eps": 0.5}, axes={"eta": [0.1, 0.2]}))
    one, two = (p.setting("method") for p in found)
    assert one is two
    assert (one.eps, one.epochs) == (0.5, 60)


def test_a_model_that_is_not_composed_makes_cells_of_the_installed_units() -> None:
    params = LinesearchParams(dataset="pictures", method="vec", eta=0.1)
    assert isinstance(params, LinesearchParams)
    assert params.setting("method") == Vec(epochs=60)
    assert EXPERIMENT.cell(params, DATASET)[0] == named(next(cells({"method": "vec"})))[0]


def test_a_row_shows_the_default_network_that_the_key_leaves_out() -> None:
    params_of = registry().experiments["linesearch"].params
    axes = {"activation": ["gelu", "relu"], "method": ["vec", "dfa"]}
    for params in cells({}, axes=axes):
        task, _ = named(params)
        assert ("network" in task.params) == (params.activation == "relu")
        completed = dict(params_of.completed(task.params))
        shown = {name: value for name, value in params.model_dump().items() if name in completed}
        assert completed == shown
        assert (completed["network"], completed["activation"], completed["bias"]) == (
            "residual_mlp",
            params.activation,
            True,
        )
        assert "kappa" not in completed
